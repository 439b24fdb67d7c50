# DDHR-SK, the benchmark of the paper's ablations: optical images, 300 epochs, last epoch.
# Data:     python datasets/prepare.py ddhr_sk --root DIR --out data/ddhr_sk   (or DDHR_SK_INDEX=INDEX_DIR)
# Command:  bash segmentation/scripts/train_1gpu.sh segmentation/configs/THIS_FILE ENCODER
# Hardware: one GPU of 24 GB
# Paper:    91.36 mIoU (CoDe-MAE, 100 epochs of pretraining; read from OCR)
# Ours:     not yet run
# Notes:    Images, crops and batch are the published ones; optimizer and schedule are those of LoveDA, for
#           none is published.
_base_ = [
    "./_base_/models/upernet_hivit.py",
    "./_base_/datasets/ddhr_sk.py",
    "./_base_/schedules/adamw_300e.py",
    "./_base_/runtime_epochs.py",
]
model = dict(
    data_preprocessor=dict(size=(256, 256)),
    decode_head=dict(num_classes=5, channels=768),
    auxiliary_head=dict(num_classes=5),
)
protocol = "paper"
