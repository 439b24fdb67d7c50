# LoveDA by SelectiveMAE's protocol: 80,000 steps, learning rate 6e-5, decay 0.9, windows 384 px apart.
# Data:     python datasets/prepare.py loveda --root DIR --out data/loveda   (or LOVEDA_INDEX=INDEX_DIR)
# Command:  bash segmentation/scripts/train_8gpu.sh segmentation/configs/THIS_FILE ENCODER
# Hardware: 8 GPUs of 24 GB, 1 image each
# Paper:    none for CoDe-MAE
# Ours:     not yet run
# Notes:    The batch of 8 is that of CoDe-MAE's comparison with it.
_base_ = [
    "./_base_/models/upernet_hivit.py",
    "./_base_/datasets/loveda_distorted.py",
    "./_base_/schedules/adamw_10k.py",
    "./_base_/runtime.py",
]
model = dict(
    decode_head=dict(num_classes=7, channels=768),
    auxiliary_head=dict(num_classes=7),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(384, 384)),
)
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=6e-5), paramwise_cfg=dict(decay=0.9))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=80000),
]
train_cfg = dict(max_iters=80000, val_interval=1000000)
val_cfg = None
val_dataloader = None
val_evaluator = None
test_cfg = None
test_dataloader = None
test_evaluator = None
protocol = "official"
