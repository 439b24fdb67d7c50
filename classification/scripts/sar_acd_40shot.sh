#!/usr/bin/env bash
# SAR-ACD, five classes, 40 images a class; no layer-wise decay.
# Usage:    bash classification/scripts/sar_acd_40shot.sh ENCODER INDEX_DIR [OUTPUT_DIR] [--key value ...]
# Hardware: one GPU of 24 GB
# Hours:    about 15 min for five seeds (estimated)
# Paper:    78.3 (CoDe-MAE)
# Ours:     not yet run
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,7s/^# //p' "$0" >&2; exit 2; fi
encoder=$1 index=$2
output=${3:-runs/sar_acd_40shot}
shift $(( $# < 3 ? $# : 3 ))
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" classification/main.py --config classification/configs/sar_acd_40shot.yaml \
  --encoder "$encoder" --data.index "$index" --output_dir "$output" "$@"
