# Ships in optical images of 512 x 512, one class; the validation images are whole runs of neighbouring tiles.
# Split: python detection/split_coco.py $SHIP_OPTICAL_ROOT/coco.json --images images --out $SHIP_OPTICAL_INDEX
_base_ = ["./coco_boxes.py"]
data_root = "{{$SHIP_OPTICAL_ROOT:data/ship_optical}}"
annotations = "{{$SHIP_OPTICAL_INDEX:data/ship_optical_index}}/annotations"
dataset_name = "ship_optical"
metainfo = dict(classes=("ship",))
train_pipeline = [
    dict(type="LoadReadableImage"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomCrop", crop_type="absolute", crop_size=(320, 320)),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(6, 6)),
    dict(type="RandomFlip", prob=[0.25, 0.25, 0.25], direction=["horizontal", "vertical", "diagonal"]),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadReadableImage", replace=False),
    dict(type="Resize", scale=(512, 512), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        ann_file=f"{annotations}/train.json",
        data_prefix=dict(img=data_root),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        ann_file=f"{annotations}/val.json",
        data_prefix=dict(img=data_root),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f"{annotations}/val.json")
test_evaluator = val_evaluator

# Measured on all 262 images, in levels of 0 to 255, red, green, blue.
data_preprocessor = dict(mean=[78.32, 90.14, 91.99], std=[47.69, 40.14, 36.86])
scene = dict(window=512, overlap=192)
