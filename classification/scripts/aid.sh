#!/usr/bin/env bash
# AID, 20 % of each class for training, 30 classes.
# Data:     python datasets/prepare.py aid --root DIR --out INDEX_DIR
# Command:  bash classification/scripts/aid.sh ENCODER INDEX_DIR [OUTPUT_DIR]
# Hardware: one GPU of 24 GB
# Hours:    about 1 h (estimated)
# Paper:    97.76 (CoDe-MAE)
# Ours:     not yet run
exec bash "$(dirname "$0")/../fine_tune.sh" aid "$@"
