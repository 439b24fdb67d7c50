# Ships with the tiny encoder on two CPU cores: crops of 320 px in training, whole images of 512 px in tests.
# About 35 minutes on two free cores (estimated from 1.6 s of one core a step).
_base_ = [
    "./_base_/models/faster-rcnn_itpn.py",
    "./_base_/datasets/ship.py",
    "./_base_/schedules/adamw_1x.py",
    "./_base_/runtime.py",
]

protocol = "clean"
model = dict(
    data_preprocessor={{_base_.data_preprocessor}},
    backbone=dict(encoder="random:hivit_tiny", out_channels=None, drop_path=0.1),
    rpn_head=dict(in_channels=96, feat_channels=96, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=96),
        bbox_head=dict(in_channels=96, fc_out_channels=256, num_classes=1),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=300), rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=300)),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(type="MultiStepLR", begin=0, end=40, by_epoch=True, milestones=[27, 36], gamma=0.1),
]
train_cfg = dict(max_epochs=40, val_interval=10)
default_hooks = dict(logger=dict(interval=12))
