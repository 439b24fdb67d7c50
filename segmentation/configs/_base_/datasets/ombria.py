# OMBRIA's flood scenes: python segmentation/flood_scenes.py --root DIR --out INDEX_DIR; masks hold 0 and 255.
ombria_index = "{{$OMBRIA_INDEX:data/ombria}}"
dataset_name = "OMBRIA val"
rows = dict(
    type="IndexSegmentation",
    index=ombria_index,
    modality="optical",
    mask_values=[0, 255],
    palette=[[225, 215, 190], [30, 110, 220]],
)
meta_keys = ("img_path", "ori_shape", "img_shape", "pad_shape", "scale_factor", "flip", "row")
train_pipeline = [
    dict(type="RandomResize", scale=(256, 256), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(128, 128)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomFlip", prob=0.5, direction="vertical"),
    dict(type="StandardiseImage"),
    dict(type="PackSegInputs", meta_keys=meta_keys),
]
test_pipeline = [dict(type="StandardiseImage"), dict(type="PackSegInputs", meta_keys=meta_keys)]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(split="train", pipeline=train_pipeline, **rows),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(split="val", pipeline=test_pipeline, test_mode=True, **rows),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="SegmentationFigures")
test_evaluator = val_evaluator
