#!/usr/bin/env bash
# DFC20, 8 classes, several labels an image; trained on its "test", evaluated on its "val", as published.
# Data:     python datasets/prepare.py dfc20 --root DIR --out INDEX_DIR
# Command:  bash linearprobing/scripts/dfc20.sh ENCODER INDEX_DIR OUTPUT_DIR [--key value ...]
# Hardware: one GPU or a CPU; the encoder passes over each image once
# Hours:    not yet measured at full size
# Paper:    70.43 / 62.55 (CoDe-MAE, 10-shot, optical / SAR, micro mAP, best epoch on the test split)
# Ours:     not yet run
exec bash "$(dirname "$0")/../published.sh" dfc20 "$@"
