#!/usr/bin/env bash
# UC Merced land use, 21 classes.
# Data:     python datasets/prepare.py ucmerced --root DIR --out INDEX_DIR
# Command:  bash classification/scripts/ucmerced.sh ENCODER INDEX_DIR [OUTPUT_DIR]
# Hardware: one GPU of 24 GB
# Hours:    about 30 min (estimated)
# Paper:    99.22 with ResNet-50, 99.48 with Swin-B (CMID)
# Ours:     not yet run
exec bash "$(dirname "$0")/../fine_tune.sh" ucmerced "$@"
