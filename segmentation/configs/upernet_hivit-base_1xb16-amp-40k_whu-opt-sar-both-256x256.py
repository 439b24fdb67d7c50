# WHU-OPT-SAR: both modalities, fused level by level, 40,000 steps of 16 windows, last step.
# Data:     python datasets/prepare.py whu_opt_sar --root DIR --out data/whu_opt_sar; or
#           WHU_OPT_SAR_INDEX=INDEX_DIR
# Command:  bash segmentation/scripts/train_1gpu.sh segmentation/configs/THIS_FILE ENCODER
# Hardware: one GPU of 24 GB
# Paper:    none comparable: test scenes differ from paper to paper
# Ours:     not yet run
# Notes:    The settings are ours; the scenes are drawn by the rule the dataset's card states.
_base_ = [
    "./_base_/models/upernet_hivit_fusion.py",
    "./_base_/datasets/whu_opt_sar.py",
    "./_base_/schedules/adamw_10k.py",
    "./_base_/runtime.py",
]
model = dict(
    data_preprocessor=dict(size=(256, 256)),
    decode_head=dict(num_classes=7),
    auxiliary_head=dict(num_classes=7),
)
train_dataloader = dict(dataset=dict(modality="both"))
val_dataloader = dict(dataset=dict(modality="both"))
test_dataloader = dict(dataset=dict(modality="both"))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=500, end=40000),
]
train_cfg = dict(max_iters=40000, val_interval=8000)
protocol = "clean"
