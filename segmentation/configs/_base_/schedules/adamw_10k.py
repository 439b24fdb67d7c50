# CoDe-MAE's fine-tuning: AdamW with layer-wise decay, 500 steps of warm-up, then a straight line to 0.
_base_ = ["mmseg::_base_/schedules/schedule_80k.py"]
optim_wrapper = dict(
    _delete_=True,
    type="AmpOptimWrapper",
    loss_scale="dynamic",
    clip_grad=dict(max_norm=35, norm_type=2),
    constructor="EncoderLayerDecay",
    paramwise_cfg=dict(variant="official", decay=0.85),
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=500, end=10000),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=10000, val_interval=2000)
default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=2000, max_keep_ckpts=2))
