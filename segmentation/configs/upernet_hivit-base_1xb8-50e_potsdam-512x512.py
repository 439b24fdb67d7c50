# ISPRS Potsdam by CMID's protocol for transformers: 50 epochs of windows of 512 px, clutter without label.
# Data:     python datasets/prepare.py isprs_potsdam --root DIR --out data/isprs_potsdam --tile 512 --stride
#           256; or ISPRS_POTSDAM_INDEX=INDEX_DIR
# Command:  bash segmentation/scripts/train_1gpu.sh segmentation/configs/THIS_FILE ENCODER
# Hardware: one GPU of 24 GB
# Paper:    88.36 mIoU, 93.70 mF1, 93.52 OA (CMID, Swin-B)
# Ours:     not yet run
# Notes:    Test windows overlap by half, as training windows do, so inner pixels count several times.
_base_ = [
    "./_base_/models/upernet_hivit.py",
    "./_base_/datasets/isprs_potsdam.py",
    "./_base_/schedules/cmid_50e.py",
    "./_base_/runtime_epochs.py",
]
model = dict(
    backbone=dict(drop_path=0.3),
    decode_head=dict(num_classes=5),
    auxiliary_head=dict(num_classes=5),
)
protocol = "paper"
