# What Potsdam and Vaihingen share: five classes in colours, clutter and the black borders without label.
_base_ = ["./index_windows.py"]
rows = dict(
    classes=["impervious surfaces", "building", "low vegetation", "tree", "car"],
    mask_values=[[255, 255, 255], [0, 0, 255], [0, 255, 255], [0, 255, 0], [255, 255, 0]],
    ignore_values=[[255, 0, 0], [0, 0, 0]],
    palette=[[255, 255, 255], [0, 0, 255], [0, 255, 255], [0, 255, 0], [255, 255, 0]],
)
train_pipeline = [
    dict(type="RandomResize", scale=(512, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="DistortPhotometry"),
    dict(type="StandardiseImage"),
    dict(type="PackSegInputs", meta_keys={{_base_.meta_keys}}),
]
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline, **rows))
val_dataloader = dict(batch_size=4, dataset=rows)
test_dataloader = val_dataloader
