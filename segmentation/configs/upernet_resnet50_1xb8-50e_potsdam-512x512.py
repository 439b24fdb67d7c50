# ISPRS Potsdam by CMID's protocol for ResNet-50: SGD, cosine, 50 epochs of windows of 512 px, clutter
# without label.
# Data:     python datasets/prepare.py isprs_potsdam --root DIR --out data/isprs_potsdam --tile 512 --stride
#           256; or ISPRS_POTSDAM_INDEX=INDEX_DIR
# Command:  bash segmentation/scripts/train_1gpu.sh segmentation/configs/THIS_FILE ENCODER
# Hardware: one GPU of 24 GB
# Paper:    87.35 mIoU, 93.11 mF1, 92.94 OA (CMID, ResNet-50)
# Ours:     not yet run
# Notes:    Test windows overlap by half, as training windows do, so inner pixels count several times.
_base_ = [
    "./_base_/models/upernet_hivit.py",
    "./_base_/datasets/isprs_potsdam.py",
    "./_base_/schedules/cmid_50e.py",
    "./_base_/runtime_epochs.py",
]
model = dict(
    backbone=dict(out_channels=None, drop_path=0.0),
    decode_head=dict(num_classes=5, in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024, num_classes=5),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="SGD", lr=0.01, momentum=0.9, weight_decay=5e-4))
protocol = "paper"
