# DDHR-SK (probe set): python datasets/prepare.py ddhr_sk --root DIR --out INDEX_DIR; masks hold 0 to 4.
_base_ = ["./index_windows.py"]
ddhr_sk_index = "{{$DDHR_SK_INDEX:data/ddhr_sk}}"
dataset_name = "DDHR-SK test"
rows = dict(
    index=ddhr_sk_index,
    mask_values=[0, 1, 2, 3, 4],
    palette=[[220, 60, 50], [150, 150, 150], [90, 160, 90], [40, 100, 200], [230, 200, 110]],
)
train_pipeline = [
    dict(type="RandomResize", scale=(512, 128), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(256, 256), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="DistortPhotometry"),
    dict(type="StandardiseImage"),
    dict(type="PackSegInputs", meta_keys={{_base_.meta_keys}}),
]
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline, **rows))
val_dataloader = dict(batch_size=16, dataset=rows)
test_dataloader = val_dataloader
