#!/usr/bin/env bash
# WHU-OPT-SAR, 7 classes, several labels an image.
# Data:     python datasets/prepare.py whu_opt_sar --root DIR --out INDEX_DIR
# Command:  bash linearprobing/scripts/whu_opt_sar.sh ENCODER INDEX_DIR OUTPUT_DIR [--key value ...]
# Hardware: one GPU or a CPU; the encoder passes over each image once
# Hours:    not yet measured at full size
# Paper:    86.86 / 87.29 (CoDe-MAE, 10-shot, optical / SAR, micro mAP, best epoch on the test split)
# Ours:     not yet run
exec bash "$(dirname "$0")/../published.sh" whu_opt_sar "$@"
