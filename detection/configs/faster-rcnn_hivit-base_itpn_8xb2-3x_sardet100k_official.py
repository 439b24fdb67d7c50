# SARDet-100K as the published code runs it: several scales, 4conv1fc head, GIoU, warm-up of 1,500 steps,
# mixed precision; the epoch of the best AP on the test images counts.
_base_ = [
    "./_base_/models/faster-rcnn_itpn_4conv1fc-giou.py",
    "./_base_/datasets/sardet100k.py",
    "./_base_/schedules/adamw_3x.py",
    "./_base_/runtime.py",
]

protocol = "official"
# Published mean and deviation, in levels of 0 to 255, in place of what prepare.py measured.
statistics = None
model = dict(
    data_preprocessor=dict(mean=[35.8299] * 3, std=[51.4447] * 3, bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(modality="sar"),
    roi_head=dict(bbox_head=dict(num_classes=6)),
)
scales = [(side, 1333) for side in range(480, 801, 32)]
train_pipeline = [
    dict(type="LoadReadableImage"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandomChoice",
        transforms=[
            [dict(type="RandomChoiceResize", scales=scales, keep_ratio=True)],
            [
                dict(
                    type="RandomChoiceResize",
                    scales=[(400, 1333), (500, 1333), (600, 1333)],
                    keep_ratio=True,
                ),
                dict(
                    type="RandomCrop",
                    crop_type="absolute_range",
                    crop_size=(384, 600),
                    allow_negative_crop=True,
                ),
                dict(type="RandomChoiceResize", scales=scales, keep_ratio=True),
            ],
        ],
    ),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadReadableImage", replace=False),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(dataset=dict(filter_cfg=dict(min_size=16), pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        ann_file="{{$SARDET100K_INDEX:data/sardet_100k_index}}/annotations/test.json", pipeline=test_pipeline
    )
)
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_evaluator = dict(ann_file="{{$SARDET100K_INDEX:data/sardet_100k_index}}/annotations/test.json")
optim_wrapper = dict(type="AmpOptimWrapper", dtype="float16")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1500),
    dict(type="MultiStepLR", begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
default_hooks = dict(checkpoint=dict(save_best="coco/bbox_mAP", rule="greater"))
