# The same optimizer by epochs.
_base_ = ["./adamw_10k.py"]
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=True, begin=0, end=300, convert_to_iter_based=True),
]
train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=300, val_interval=25)
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=True),
    checkpoint=dict(type="CheckpointHook", by_epoch=True, interval=25, max_keep_ckpts=2),
)
