#!/usr/bin/env bash
# MSTAR SOC, ten classes, 40 images a class, hivit_tiny at 64 px, five seeds.
# Data:     python datasets/prepare.py folder --root DIR --modality sar --out INDEX_DIR
# Command:  bash classification/scripts/mstar_40shot_cpu.sh ENCODER INDEX_DIR [OUTPUT_DIR]
# Hardware: 2 CPU cores
# Hours:    1 min of processor time for five seeds, 3 min with efficientnet_lite0
# Paper:    none; a check that the machinery works
# Ours:     56.59 +- 2.17 with the tiny CoDe-MAE, 43.21 +- 0.99 with random weights (2,425 test images)
exec bash "$(dirname "$0")/../fine_tune.sh" mstar_40shot_cpu "$@"
