# SARDet-100K: trained on train, watched on val, scored on test, 800 x 800.
# Annotations: python datasets/prepare.py sardet_100k --root $SARDET100K_ROOT --out $SARDET100K_INDEX
data_root = "{{$SARDET100K_ROOT:data/sardet_100k}}"
annotations = "{{$SARDET100K_INDEX:data/sardet_100k_index}}/annotations"
dataset_name = "SARDet-100K"
metainfo = dict(classes=("ship", "aircraft", "car", "tank", "bridge", "harbor"))
train_pipeline = [
    dict(type="LoadReadableImage"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(800, 800), keep_ratio=False),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadReadableImage", replace=False),
    dict(type="Resize", scale=(800, 800), keep_ratio=False),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(
        type="CheckedCocoDataset",
        ann_file=f"{annotations}/train.json",
        data_prefix=dict(img=data_root),
        metainfo=metainfo,
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CheckedCocoDataset",
        ann_file=f"{annotations}/val.json",
        data_prefix=dict(img=data_root),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CheckedCocoDataset",
        ann_file=f"{annotations}/test.json",
        data_prefix=dict(img=data_root),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type="CheckedCocoMetric", ann_file=f"{annotations}/val.json", metric="bbox")
test_evaluator = dict(type="CheckedCocoMetric", ann_file=f"{annotations}/test.json", metric="bbox")

# Mean and deviation are those that prepare.py measured on the training images.
statistics = "{{$SARDET100K_INDEX:data/sardet_100k_index}}/stats.yaml"
data_preprocessor = dict(bgr_to_rgb=True, pad_size_divisor=32)
scene = dict(window=800, overlap=200)
