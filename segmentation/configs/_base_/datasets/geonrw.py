# GeoNRW: python datasets/prepare.py geonrw --root DIR --out INDEX_DIR --tile 250 --stride 250
# The elevation stands in the index as the `sar` image; masks hold 1 to 10, 0 is without label.
_base_ = ["./index_windows.py"]
geonrw_index = "{{$GEONRW_INDEX:data/geonrw}}"
dataset_name = "GeoNRW test"
rows = dict(
    index=geonrw_index,
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
train_pipeline = [
    dict(type="RandomResizedWindow", side=256, scale=(0.2, 1.0)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="StandardiseImage"),
    dict(type="PackSegInputs", meta_keys={{_base_.meta_keys}}),
]
train_dataloader = dict(batch_size=32, num_workers=8, dataset=dict(pipeline=train_pipeline, **rows))
val_dataloader = dict(batch_size=32, num_workers=8, dataset=rows)
test_dataloader = val_dataloader
