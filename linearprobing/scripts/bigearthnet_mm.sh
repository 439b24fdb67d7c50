#!/usr/bin/env bash
# BigEarthNet-MM, 19 classes, several labels an image; evaluated on "val", as published.
# Data:     python datasets/prepare.py bigearthnet_mm --root DIR --out INDEX_DIR
# Command:  bash linearprobing/scripts/bigearthnet_mm.sh ENCODER INDEX_DIR OUTPUT_DIR [--key value ...]
# Hardware: one GPU or a CPU; the encoder passes over each image once
# Hours:    not yet measured at full size
# Paper:    65.38 / 57.97 (CoDe-MAE, 10-shot, optical / SAR, micro mAP, best epoch on the test split)
# Ours:     not yet run
exec bash "$(dirname "$0")/../published.sh" bigearthnet_mm "$@"
