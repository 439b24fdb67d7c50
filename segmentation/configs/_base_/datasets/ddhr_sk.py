# DDHR-SK (probe set): python datasets/prepare.py ddhr_sk --root DIR --out INDEX_DIR; masks hold 0 to 4.
ddhr_sk_index = "{{$DDHR_SK_INDEX:data/ddhr_sk}}"
dataset_name = "DDHR-SK test"
rows = dict(
    type="IndexSegmentation",
    index=ddhr_sk_index,
    modality="optical",
    mask_values=[0, 1, 2, 3, 4],
    palette=[[220, 60, 50], [150, 150, 150], [90, 160, 90], [40, 100, 200], [230, 200, 110]],
)
meta_keys = ("img_path", "ori_shape", "img_shape", "pad_shape", "scale_factor", "flip", "row")
train_pipeline = [
    dict(type="RandomResize", scale=(512, 128), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(256, 256), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="DistortPhotometry"),
    dict(type="StandardiseImage"),
    dict(type="PackSegInputs", meta_keys=meta_keys),
]
test_pipeline = [dict(type="StandardiseImage"), dict(type="PackSegInputs", meta_keys=meta_keys)]
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
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
