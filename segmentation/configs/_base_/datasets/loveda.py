# LoveDA: python datasets/prepare.py loveda --root DIR --out INDEX_DIR; masks hold 1 to 7, 0 is without label.
loveda_index = "{{$LOVEDA_INDEX:data/loveda}}"
dataset_name = "LoveDA val"
rows = dict(
    type="IndexSegmentation",
    index=loveda_index,
    modality="optical",
    mask_values=[1, 2, 3, 4, 5, 6, 7],
    ignore_values=[0],
    palette=[
        [255, 255, 255],
        [255, 0, 0],
        [255, 255, 0],
        [0, 0, 255],
        [159, 129, 183],
        [0, 255, 0],
        [255, 195, 128],
    ],
)
meta_keys = ("img_path", "ori_shape", "img_shape", "pad_shape", "scale_factor", "flip", "row")
train_pipeline = [
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="DistortPhotometry"),
    dict(type="StandardiseImage"),
    dict(type="PackSegInputs", meta_keys=meta_keys),
]
test_pipeline = [dict(type="StandardiseImage"), dict(type="PackSegInputs", meta_keys=meta_keys)]
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(split=["train", "val"], pipeline=train_pipeline, **rows),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(split="val", pipeline=test_pipeline, test_mode=True, **rows),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="SegmentationFigures")
test_evaluator = val_evaluator
submission = dict(first_value=0, side=1024, images=1796)
