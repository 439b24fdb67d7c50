# OMBRIA's flood scenes: python segmentation/flood_scenes.py --root DIR --out INDEX_DIR; masks hold 0 and 255.
_base_ = ["./index_windows.py"]
ombria_index = "{{$OMBRIA_INDEX:data/ombria}}"
dataset_name = "OMBRIA val"
rows = dict(
    index=ombria_index,
    mask_values=[0, 255],
    palette=[[225, 215, 190], [30, 110, 220]],
)
train_pipeline = [
    dict(type="RandomResize", scale=(256, 256), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(128, 128)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomFlip", prob=0.5, direction="vertical"),
    dict(type="StandardiseImage"),
    dict(type="PackSegInputs", meta_keys={{_base_.meta_keys}}),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="InfiniteSampler"),
    dataset=dict(pipeline=train_pipeline, **rows),
)
val_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(split="val", **rows)
)
test_dataloader = val_dataloader
