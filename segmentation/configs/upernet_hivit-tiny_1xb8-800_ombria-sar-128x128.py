# Floods of OMBRIA on two CPU cores: SAR images, the images after the flood, 800 steps, last step.
# Data:     python segmentation/flood_scenes.py --root DIR --out data/ombria   (or OMBRIA_INDEX=INDEX_DIR)
# Command:  python segmentation/main.py train segmentation/configs/THIS_FILE --encoder ENCODER
# Hardware: 2 CPU cores
# Paper:    none
# Ours:     see README
# Notes:    192 scenes train, 48 others are measured on; no scene chooses anything. center is off: water is
#           dark in SAR, and an encoder that takes each image's mean away does not see it.
_base_ = [
    "./_base_/models/upernet_hivit.py",
    "./_base_/datasets/ombria.py",
    "./_base_/schedules/adamw_cpu.py",
    "./_base_/runtime.py",
]
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        encoder="random:hivit_tiny",
        modality="sar",
        out_channels=96,
        drop_path=0.05,
        center=[],
        norm_maps=True,
    ),
    decode_head=dict(in_channels=[96, 96, 96, 96], channels=96, num_classes=2),
    auxiliary_head=dict(in_channels=96, channels=48, num_classes=2),
)
train_dataloader = dict(dataset=dict(modality="sar"))
val_dataloader = dict(dataset=dict(modality="sar"))
test_dataloader = dict(dataset=dict(modality="sar"))
tiling = dict(window=256, overlap=64, panel=256)
protocol = "clean"
