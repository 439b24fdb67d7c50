# DIOR as the published code runs it: 4conv1fc head, GIoU; the epoch of the best AP on the test images counts.
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
# Lists of a base are replaced whole, so both parts stand here for the least side of an image, 16 px.
train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(
                type="CheckedCocoDataset",
                ann_file=ann_file,
                data_prefix=dict(img={{_base_.data_root}}),
                metainfo={{_base_.metainfo}},
                filter_cfg=dict(filter_empty_gt=True, min_size=16),
                pipeline={{_base_.train_pipeline}},
            )
            for ann_file in (
                "{{$DIOR_INDEX:data/dior_index}}/annotations/train.json",
                "{{$DIOR_INDEX:data/dior_index}}/annotations/val.json",
            )
        ]
    )
)
default_hooks = dict(checkpoint=dict(save_best="coco/bbox_mAP", rule="greater"))
