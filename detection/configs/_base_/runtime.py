# What every detection config shares: mmdet's runtime, the encoder's registration, a seed, checkpoints.
_base_ = ["mmdet::_base_/default_runtime.py"]

custom_imports = dict(
    imports=["codemae.mm", "codemae.mm.images", "codemae.mm.coco"], allow_failed_imports=False
)
randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(interval=1, max_keep_ckpts=2),
    param_scheduler=dict(type="OptimizerStepHook"),
    visualization=dict(_delete_=True, type="DetVisualizationHook", draw=False),
)
