#!/usr/bin/env bash
# SEN12MS scene classification, one label an image, both modalities.
# Data:     python datasets/prepare.py sen12ms --root DIR --out INDEX_DIR
# Command:  bash classification/scripts/sen12ms.sh ENCODER INDEX_DIR [OUTPUT_DIR]
# Hardware: one GPU of 24 GB
# Hours:    about 6 h (estimated)
# Paper:    top-1 59.6, top-3 93.6, precision 71.5, recall 59.6, F1 60.1, linear on a frozen encoder, one modality (Fus-MAE)
# Ours:     not yet run
exec bash "$(dirname "$0")/../fine_tune.sh" sen12ms "$@"
