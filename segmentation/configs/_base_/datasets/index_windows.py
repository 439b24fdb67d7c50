# What every dataset of an index shares: one modality, whole windows in tests, figures of all pixels.
# A dataset adds index, mask values, palette, training pipeline and batch.
rows = dict(type="IndexSegmentation", modality="optical")
meta_keys = ("img_path", "ori_shape", "img_shape", "pad_shape", "scale_factor", "flip", "row")
test_pipeline = [dict(type="StandardiseImage"), dict(type="PackSegInputs", meta_keys=meta_keys)]
train_dataloader = dict(
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(split="train", **rows),
)
val_dataloader = dict(
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(split="test", pipeline=test_pipeline, test_mode=True, **rows),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="SegmentationFigures")
test_evaluator = val_evaluator
