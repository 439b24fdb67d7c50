#!/usr/bin/env bash
# Fine-tunes an encoder by one config on one GPU, or on the CPU where there is none.
# Usage: bash segmentation/scripts/train_1gpu.sh CONFIG ENCODER [WORK_DIR] [option ...]
# ENCODER is FILE, a released NAME or random:ARCH, for two modalities also OPTICAL_FILE,SAR_FILE; options are those of segmentation/main.py train, --cfg-options last.
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,4s/^# //p' "$0" >&2; exit 2; fi
config=$1 encoder=$2
work_dir=${3:-runs/segmentation/$(basename "$config" .py)}
shift $(( $# < 3 ? $# : 3 ))
exec "${PYTHON:-python}" "$(dirname "$0")/../main.py" train "$config" --encoder "$encoder" --work-dir "$work_dir" "$@"
