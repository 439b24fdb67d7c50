#!/usr/bin/env bash
# NWPU-RESISC45, 10 % of each class for training, 45 classes.
# Usage:    bash classification/scripts/resisc45.sh ENCODER INDEX_DIR [OUTPUT_DIR] [--key value ...]
# Hardware: one GPU of 24 GB
# Hours:    about 1 h (estimated)
# Paper:    94.79 (CoDe-MAE)
# Ours:     not yet run
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,7s/^# //p' "$0" >&2; exit 2; fi
encoder=$1 index=$2
output=${3:-runs/resisc45}
shift $(( $# < 3 ? $# : 3 ))
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" classification/main.py --config classification/configs/resisc45.yaml \
  --encoder "$encoder" --data.index "$index" --output_dir "$output" "$@"
