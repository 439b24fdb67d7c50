# LoveDA: python datasets/prepare.py loveda --root DIR --out INDEX_DIR; masks hold 1 to 7, 0 is without label.
_base_ = ["./index_windows.py"]
loveda_index = "{{$LOVEDA_INDEX:data/loveda}}"
dataset_name = "LoveDA val"
rows = dict(
    index=loveda_index,
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
train_pipeline = [
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="StandardiseImage"),
    dict(type="PackSegInputs", meta_keys={{_base_.meta_keys}}),
]
train_dataloader = dict(
    batch_size=2,
    sampler=dict(type="InfiniteSampler"),
    dataset=dict(split=["train", "val"], pipeline=train_pipeline, **rows),
)
val_dataloader = dict(batch_size=1, dataset=dict(split="val", **rows))
test_dataloader = val_dataloader
submission = dict(first_value=0, side=1024, images=1796)
