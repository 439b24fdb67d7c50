# DeCUR's fine-tuning on GeoNRW: AdamW, one learning rate for all layers, 30 epochs.
_base_ = ["mmseg::_base_/schedules/schedule_80k.py"]
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="EncoderLayerDecay",
    paramwise_cfg=dict(variant="official", decay=1.0),
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.01),
)
param_scheduler = []
train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=30, val_interval=5)
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=True),
    checkpoint=dict(type="CheckpointHook", by_epoch=True, interval=5, max_keep_ckpts=2),
)
