#!/usr/bin/env bash
# Fine-tunes an encoder by one config on the 8 GPUs of one machine (GPUS=N for another count).
# Usage: bash segmentation/scripts/train_8gpu.sh CONFIG ENCODER [WORK_DIR] [option ...]
# ENCODER is FILE, a released NAME or random:ARCH, for two modalities also OPTICAL_FILE,SAR_FILE; options are those of segmentation/main.py train, --cfg-options last.
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,4s/^# //p' "$0" >&2; exit 2; fi
config=$1 encoder=$2
work_dir=${3:-runs/segmentation/$(basename "$config" .py)}
shift $(( $# < 3 ? $# : 3 ))
exec "${TORCHRUN:-torchrun}" --nproc_per_node="${GPUS:-8}" "$(dirname "$0")/../main.py" train "$config" \
  --encoder "$encoder" --work-dir "$work_dir" --launcher pytorch "$@"
