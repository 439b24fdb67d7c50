#!/usr/bin/env bash
# SAR-ACD, five classes, 40 images a class; no layer-wise decay.
# Data:     python datasets/prepare.py sar_acd --root DIR --out INDEX_DIR
# Command:  bash classification/scripts/sar_acd_40shot.sh ENCODER INDEX_DIR [OUTPUT_DIR]
# Hardware: one GPU of 24 GB
# Hours:    about 15 min for five seeds (estimated)
# Paper:    78.3 (CoDe-MAE)
# Ours:     not yet run
exec bash "$(dirname "$0")/../fine_tune.sh" sar_acd_40shot "$@"
