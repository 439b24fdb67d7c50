# What every dataset of COCO boxes shares: checked annotations, checked figures, images padded to 32.
# A dataset adds paths, classes, pipelines, and how images are standardised.
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="CheckedCocoDataset", filter_cfg=dict(filter_empty_gt=True, min_size=32)),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="CheckedCocoDataset", test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CheckedCocoMetric", metric="bbox")
test_evaluator = val_evaluator
data_preprocessor = dict(bgr_to_rgb=True, pad_size_divisor=32)
