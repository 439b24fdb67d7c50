#!/usr/bin/env bash
# EuroSAT-MM, 10 classes.
# Data:     python datasets/prepare.py eurosat_mm --root DIR --out INDEX_DIR
# Command:  bash linearprobing/scripts/eurosat_mm.sh ENCODER INDEX_DIR OUTPUT_DIR [--key value ...]
# Hardware: one GPU or a CPU; the encoder passes over each image once
# Hours:    not yet measured at full size
# Paper:    81.18 / 59.88 (CoDe-MAE, 10-shot, optical / SAR, overall accuracy, best epoch on the test split)
# Ours:     not yet run
exec bash "$(dirname "$0")/../published.sh" eurosat_mm "$@"
