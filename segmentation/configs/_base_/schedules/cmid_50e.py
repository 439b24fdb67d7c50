# CMID's fine-tuning of transformers: AdamW without layer-wise decay, 100 steps of warm-up, cosine, 50 epochs.
_base_ = ["mmseg::_base_/schedules/schedule_80k.py"]
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="EncoderLayerDecay",
    paramwise_cfg=dict(variant="official", decay=1.0),
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=100),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-6,
        T_max=50,
        by_epoch=True,
        begin=0,
        end=50,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=50, val_interval=5)
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=True),
    checkpoint=dict(type="CheckpointHook", by_epoch=True, interval=5, max_keep_ckpts=2),
)
