# DIOR as the published code runs it: 4conv1fc head, GIoU; the epoch best on the test images counts.
_base_ = [
    "./_base_/models/faster-rcnn_itpn_4conv1fc-giou.py",
    "./_base_/datasets/dior.py",
    "./_base_/schedules/adamw_1x.py",
    "./_base_/runtime.py",
]

protocol = "official"
model = dict(
    data_preprocessor={{_base_.data_preprocessor}},
    roi_head=dict(bbox_head=dict(num_classes=20)),
)
default_hooks = dict(checkpoint=dict(save_best="coco/bbox_mAP_50", rule="greater"))
