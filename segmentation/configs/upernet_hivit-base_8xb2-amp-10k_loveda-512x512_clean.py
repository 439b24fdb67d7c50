# LoveDA without the server: trained on train alone, measured on val, last step.
# Data:     python datasets/prepare.py loveda --root DIR --out data/loveda   (or LOVEDA_INDEX=INDEX_DIR)
# Command:  bash segmentation/scripts/train_8gpu.sh segmentation/configs/THIS_FILE ENCODER
# Hardware: 8 GPUs of 24 GB, 2 images each
# Paper:    none on this split
# Ours:     not yet run
# Notes:    No image of val chooses or trains anything.
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
train_dataloader = dict(dataset=dict(split="train"))
protocol = "clean"
