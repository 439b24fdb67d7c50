# SARDet-100K: trained on train, watched on val, scored on test, 800 x 800.
# Annotations: python datasets/prepare.py sardet_100k --root $SARDET100K_ROOT --out $SARDET100K_INDEX
_base_ = ["./coco_boxes.py"]
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
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(
        ann_file=f"{annotations}/train.json",
        data_prefix=dict(img=data_root),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        ann_file=f"{annotations}/val.json",
        data_prefix=dict(img=data_root),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    dataset=dict(
        ann_file=f"{annotations}/test.json",
        data_prefix=dict(img=data_root),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(ann_file=f"{annotations}/val.json")
test_evaluator = dict(ann_file=f"{annotations}/test.json")

# Mean and deviation are those that prepare.py measured on the training images.
statistics = "{{$SARDET100K_INDEX:data/sardet_100k_index}}/stats.yaml"
scene = dict(window=800, overlap=200)
