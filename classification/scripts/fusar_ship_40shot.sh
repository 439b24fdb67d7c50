#!/usr/bin/env bash
# FUSAR-Ship in the ten classes of SARATR-X, 40 images a class.
# Data:     python datasets/prepare.py fusar_ship --root DIR --out INDEX_DIR
# Command:  bash classification/scripts/fusar_ship_40shot.sh ENCODER INDEX_DIR [OUTPUT_DIR]
# Hardware: one GPU of 24 GB
# Hours:    about 15 min for five seeds (estimated)
# Paper:    89.4 (CoDe-MAE); 89.30 (SARMAE, ViT-B)
# Ours:     not yet run
exec bash "$(dirname "$0")/../fine_tune.sh" fusar_ship_40shot "$@"
