# GeoNRW: python datasets/prepare.py geonrw --root DIR --out INDEX_DIR --tile 250 --stride 250
# The elevation stands in the index as the `sar` image; masks hold 1 to 10, 0 is without label.
geonrw_index = "{{$GEONRW_INDEX:data/geonrw}}"
dataset_name = "GeoNRW test"
rows = dict(
    type="IndexSegmentation",
    index=geonrw_index,
    modality="optical",
    mask_values=[1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
    ignore_values=[0],
    palette=[
        [44, 160, 44],
        [31, 119, 180],
        [140, 86, 75],
        [127, 127, 127],
        [188, 189, 34],
        [255, 127, 14],
        [148, 103, 189],
        [23, 190, 207],
        [214, 39, 40],
        [227, 119, 194],
    ],
)
meta_keys = ("img_path", "ori_shape", "img_shape", "pad_shape", "scale_factor", "flip", "row")
train_pipeline = [
    dict(type="RandomResizedWindow", side=256, scale=(0.2, 1.0)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="StandardiseImage"),
    dict(type="PackSegInputs", meta_keys=meta_keys),
]
test_pipeline = [dict(type="StandardiseImage"), dict(type="PackSegInputs", meta_keys=meta_keys)]
train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(split="train", pipeline=train_pipeline, **rows),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(split="test", pipeline=test_pipeline, test_mode=True, **rows),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="SegmentationFigures")
test_evaluator = val_evaluator
