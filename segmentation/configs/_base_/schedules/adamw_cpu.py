# A short run on two CPU cores.
_base_ = ["./adamw_10k.py"]
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    clip_grad=dict(max_norm=35, norm_type=2),
    constructor="EncoderLayerDecay",
    paramwise_cfg=dict(variant="official", decay=0.85),
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=40),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=40, end=800),
]
train_cfg = dict(max_iters=800, val_interval=200)
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=20, log_metric_by_epoch=False),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=200, max_keep_ckpts=1),
)
