#!/usr/bin/env bash
# PIE-RGB-SAR, 6 classes, several labels an image.
# Data:     python datasets/prepare.py pie_rgb_sar --root DIR --out INDEX_DIR
# Command:  bash linearprobing/scripts/pie_rgb_sar.sh ENCODER INDEX_DIR OUTPUT_DIR [--key value ...]
# Hardware: one GPU or a CPU; the encoder passes over each image once
# Hours:    not yet measured at full size
# Paper:    91.27 / 88.78 (CoDe-MAE, 10-shot, optical / SAR, micro mAP, best epoch on the test split)
# Ours:     not yet run
exec bash "$(dirname "$0")/../published.sh" pie_rgb_sar "$@"
