# LoveDA as the paper reads: train and val together, 10,000 steps of 16, learning rate 1e-4; scales, crops and
# flips.
# Data:     python datasets/prepare.py loveda --root DIR --out data/loveda   (or LOVEDA_INDEX=INDEX_DIR)
# Command:  bash segmentation/scripts/train_8gpu.sh segmentation/configs/THIS_FILE ENCODER
# Hardware: 8 GPUs of 24 GB, 2 images each
# Paper:    55.32 mIoU on the server's test images (CoDe-MAE)
# Ours:     not yet run
# Notes:    Test images have no masks: `test --submission DIR` writes the archive for the server.
_base_ = [
    "./_base_/models/upernet_hivit.py",
    "./_base_/datasets/loveda.py",
    "./_base_/schedules/adamw_10k.py",
    "./_base_/runtime.py",
]
model = dict(
    decode_head=dict(num_classes=7, channels=768),
    auxiliary_head=dict(num_classes=7),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(256, 256)),
)
train_cfg = dict(val_interval=1000000)
val_cfg = None
val_dataloader = None
val_evaluator = None
test_cfg = None
test_dataloader = None
test_evaluator = None
protocol = "paper"
