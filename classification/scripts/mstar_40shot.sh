#!/usr/bin/env bash
# MSTAR SOC, ten classes, 40 images a class.
# Data:     python datasets/prepare.py mstar_soc --root DIR --out INDEX_DIR
# Command:  bash classification/scripts/mstar_40shot.sh ENCODER INDEX_DIR [OUTPUT_DIR]
# Hardware: one GPU of 24 GB
# Hours:    about 15 min for five seeds (estimated)
# Paper:    98.7 (CoDe-MAE); 96.70 (SARMAE, ViT-B)
# Ours:     not yet run
exec bash "$(dirname "$0")/../fine_tune.sh" mstar_40shot "$@"
