# LoveDA as the published config reads: learning rate 3e-5 (its name and the paper say 1e-4), photometric
# distortion, which the paper does not name, and the mean and deviation that it states.
# Data:     python datasets/prepare.py loveda --root DIR --out data/loveda   (or LOVEDA_INDEX=INDEX_DIR)
# Command:  bash segmentation/scripts/train_8gpu.sh segmentation/configs/THIS_FILE ENCODER
# Hardware: 8 GPUs of 24 GB, 2 images each
# Paper:    55.32 mIoU on the server's test images (CoDe-MAE)
# Ours:     not yet run
# Notes:    Test images have no masks: `test --submission DIR` writes the archive for the server.
_base_ = [
    "./_base_/models/upernet_hivit.py",
    "./_base_/datasets/loveda_distorted.py",
    "./_base_/schedules/adamw_10k.py",
    "./_base_/runtime.py",
]
model = dict(
    decode_head=dict(num_classes=7, channels=768),
    auxiliary_head=dict(num_classes=7),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(256, 256)),
)
levels = dict(optical=dict(mean=[73.10, 79.13, 75.95], std=[39.29, 35.37, 34.07]))
train_dataloader = dict(dataset=dict(levels=levels))
train_cfg = dict(val_interval=1000000)
val_cfg = None
val_dataloader = None
val_evaluator = None
test_cfg = None
test_dataloader = None
test_evaluator = None
optim_wrapper = dict(optimizer=dict(lr=3e-5))
protocol = "official"
