# DIOR: trained on train and val together, scored on test, 800 x 800.
# Annotations: python datasets/prepare.py dior --root $DIOR_ROOT --out $DIOR_INDEX
_base_ = ["./coco_boxes.py"]
data_root = "{{$DIOR_ROOT:data/dior}}"
annotations = "{{$DIOR_INDEX:data/dior_index}}/annotations"
dataset_name = "DIOR"
metainfo = dict(
    classes=(
        "airplane",
        "airport",
        "baseballfield",
        "basketballcourt",
        "bridge",
        "chimney",
        "dam",
        "Expressway-Service-area",
        "Expressway-toll-station",
        "golffield",
        "groundtrackfield",
        "harbor",
        "overpass",
        "ship",
        "stadium",
        "storagetank",
        "tenniscourt",
        "trainstation",
        "vehicle",
        "windmill",
    )
)
train_pipeline = [
    dict(type="LoadReadableImage"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(800, 800), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadReadableImage", replace=False),
    dict(type="Resize", scale=(800, 800), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(
        _delete_=True,
        type="ConcatDataset",
        datasets=[
            dict(
                type="CheckedCocoDataset",
                ann_file=f"{annotations}/{split}.json",
                data_prefix=dict(img=data_root),
                metainfo=metainfo,
                filter_cfg=dict(filter_empty_gt=True, min_size=32),
                pipeline=train_pipeline,
            )
            for split in ("train", "val")
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        ann_file=f"{annotations}/test.json",
        data_prefix=dict(img=data_root),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f"{annotations}/test.json")
test_evaluator = val_evaluator

# Measured on trainval, in levels of 0 to 255, red, green, blue (official CoDe-MAE config).
data_preprocessor = dict(mean=[98.33, 101.306, 92.275], std=[51.038, 47.363, 47.672])
scene = dict(window=800, overlap=200)
