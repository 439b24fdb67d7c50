# GeoNRW by DeCUR's protocol: FCN on ResNet-50, optical images and elevation, 30 epochs of 256.
# Data:     python datasets/prepare.py geonrw --root DIR --out data/geonrw --tile 250 --stride 250; or
#           GEONRW_INDEX=INDEX_DIR
# Command:  bash segmentation/scripts/train_8gpu.sh segmentation/configs/THIS_FILE ENCODER
# Hardware: 8 GPUs of 24 GB, 32 windows each
# Paper:    23.0 random, 48.9 DeCUR (all labels); 36.6 with 1 %
# Ours:     not yet run
# Notes:    Elevation is the index's `sar` image. --cfg-options model.backbone.frozen_stages=4 freezes the
#           encoder; train_dataloader.dataset.fraction=0.01 takes 1 % of the windows. ENCODER is
#           OPTICAL_FILE,SAR_FILE, the two of DeCUR; one file of both modalities is taken, too.
_base_ = [
    "./_base_/models/fcn_resnet50_decur.py",
    "./_base_/datasets/geonrw.py",
    "./_base_/schedules/decur_30e.py",
    "./_base_/runtime_epochs.py",
]
model = dict(backbone=dict(modality="both"), decode_head=dict(in_channels=[1024, 2048, 4096]))
train_dataloader = dict(dataset=dict(modality="both"))
val_dataloader = dict(dataset=dict(modality="both"))
test_dataloader = dict(dataset=dict(modality="both"))
protocol = "paper"
