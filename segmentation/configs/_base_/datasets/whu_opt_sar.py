# WHU-OPT-SAR: python datasets/prepare.py whu_opt_sar --root DIR --out INDEX_DIR; 0 is without label.
_base_ = ["./index_windows.py"]
whu_opt_sar_index = "{{$WHU_OPT_SAR_INDEX:data/whu_opt_sar}}"
dataset_name = "WHU-OPT-SAR test"
rows = dict(
    index=whu_opt_sar_index,
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
train_pipeline = [
    dict(type="RandomResize", scale=(256, 256), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(256, 256), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="DistortPhotometry"),
    dict(type="StandardiseImage"),
    dict(type="PackSegInputs", meta_keys={{_base_.meta_keys}}),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    sampler=dict(type="InfiniteSampler"),
    dataset=dict(pipeline=train_pipeline, **rows),
)
val_dataloader = dict(batch_size=16, dataset=rows)
test_dataloader = val_dataloader
