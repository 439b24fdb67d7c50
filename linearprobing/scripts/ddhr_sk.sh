#!/usr/bin/env bash
# DDHR-SK, 5 classes, several labels an image.
# Data:     python datasets/prepare.py ddhr_sk --root DIR --out INDEX_DIR
# Command:  bash linearprobing/scripts/ddhr_sk.sh ENCODER INDEX_DIR OUTPUT_DIR [--key value ...]
# Hardware: one GPU or a CPU; the encoder passes over each image once
# Hours:    not yet measured at full size
# Paper:    84.86 / 89.20 (CoDe-MAE, 10-shot, optical / SAR, micro mAP, best epoch on the test split)
# Ours:     not yet run
exec bash "$(dirname "$0")/../published.sh" ddhr_sk "$@"
