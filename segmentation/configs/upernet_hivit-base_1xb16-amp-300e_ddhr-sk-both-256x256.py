# DDHR-SK, the benchmark of the paper's ablations: both modalities, fused level by level, 300 epochs, last
# epoch.
# Data:     python datasets/prepare.py ddhr_sk --root DIR --out data/ddhr_sk   (or DDHR_SK_INDEX=INDEX_DIR)
# Command:  bash segmentation/scripts/train_1gpu.sh segmentation/configs/THIS_FILE ENCODER
# Hardware: one GPU of 24 GB
# Paper:    none: the peers fuse nothing here
# Ours:     not yet run
# Notes:    Images, crops and batch are the published ones; optimizer and schedule are those of LoveDA, for
#           none is published.
_base_ = [
    "./_base_/models/upernet_hivit_fusion.py",
    "./_base_/datasets/ddhr_sk.py",
    "./_base_/schedules/adamw_300e.py",
    "./_base_/runtime_epochs.py",
]
model = dict(
    data_preprocessor=dict(size=(256, 256)),
    decode_head=dict(num_classes=5, channels=768),
    auxiliary_head=dict(num_classes=5),
)
train_dataloader = dict(dataset=dict(modality="both"))
val_dataloader = dict(dataset=dict(modality="both"))
test_dataloader = dict(dataset=dict(modality="both"))
protocol = "paper"
