#!/usr/bin/env bash
# BigEarthNet-MM, 19 classes, several labels an image, 1 % of the labels, Sentinel-2.
# Data:     python datasets/prepare.py bigearthnet_mm --root DIR --out INDEX_DIR
# Command:  bash classification/scripts/bigearthnet_mm_optical.sh ENCODER INDEX_DIR [OUTPUT_DIR]
# Hardware: one GPU of 24 GB
# Hours:    about 2 h (estimated)
# Paper:    none for these settings; linear on a frozen encoder, S2: 70.0 mAP (Fus-MAE)
# Ours:     not yet run
exec bash "$(dirname "$0")/../fine_tune.sh" bigearthnet_mm_optical "$@"
