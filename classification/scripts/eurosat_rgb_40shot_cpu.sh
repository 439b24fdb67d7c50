#!/usr/bin/env bash
# EuroSAT RGB, ten classes, 40 images a class, hivit_tiny at 64 px, five seeds.
# Data:     python datasets/prepare.py folder --root DIR --modality optical --out INDEX_DIR --split-fraction 0.5 --split-seed 0
# Command:  bash classification/scripts/eurosat_rgb_40shot_cpu.sh ENCODER INDEX_DIR [OUTPUT_DIR]
# Hardware: 2 CPU cores
# Hours:    1 min of processor time for five seeds, 3 min with efficientnet_lite0
# Paper:    none; a check that the machinery works
# Ours:     65.91 +- 0.86 with the tiny CoDe-MAE, 50.20 +- 2.84 with random weights (1,500 test images)
exec bash "$(dirname "$0")/../fine_tune.sh" eurosat_rgb_40shot_cpu "$@"
