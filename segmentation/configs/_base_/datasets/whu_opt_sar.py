# WHU-OPT-SAR: python datasets/prepare.py whu_opt_sar --root DIR --out INDEX_DIR; 0 is without label.
whu_opt_sar_index = "{{$WHU_OPT_SAR_INDEX:data/whu_opt_sar}}"
dataset_name = "WHU-OPT-SAR test"
rows = dict(
    type="IndexSegmentation",
    index=whu_opt_sar_index,
    modality="optical",
    mask_values=[10, 20, 30, 40, 50, 60, 70],
    ignore_values=[0],
    palette=[
        [204, 102, 0],
        [255, 0, 0],
        [255, 255, 0],
        [0, 0, 255],
        [85, 166, 0],
        [93, 255, 255],
        [152, 102, 153],
    ],
)
meta_keys = ("img_path", "ori_shape", "img_shape", "pad_shape", "scale_factor", "flip", "row")
train_pipeline = [
    dict(type="RandomResize", scale=(256, 256), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(256, 256), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="DistortPhotometry"),
    dict(type="StandardiseImage"),
    dict(type="PackSegInputs", meta_keys=meta_keys),
]
test_pipeline = [dict(type="StandardiseImage"), dict(type="PackSegInputs", meta_keys=meta_keys)]
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(split="train", pipeline=train_pipeline, **rows),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(split="test", pipeline=test_pipeline, test_mode=True, **rows),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="SegmentationFigures")
test_evaluator = val_evaluator
