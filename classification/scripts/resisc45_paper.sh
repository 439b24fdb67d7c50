#!/usr/bin/env bash
# NWPU-RESISC45, 10 % of each class for training, 45 classes, with the paper's augmentation.
# Data:     python datasets/prepare.py nwpu_resisc45 --root DIR --out INDEX_DIR
# Command:  bash classification/scripts/resisc45_paper.sh ENCODER INDEX_DIR [OUTPUT_DIR]
# Hardware: one GPU of 24 GB
# Hours:    about 1 h (estimated)
# Paper:    94.79 (CoDe-MAE)
# Ours:     not yet run
exec bash "$(dirname "$0")/../fine_tune.sh" resisc45_paper "$@"
