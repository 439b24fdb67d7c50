#!/usr/bin/env bash
# BRIGHT, standard-ML split of all 14 disasters (2,918 / 450 / 878 tiles).
# Usage:    bash bright/scripts/standard_ml.sh ENCODER INDEX_DIR [OUTPUT_DIR] [--key value ...]
# Hardware: one GPU of 24 GB
# Hours:    about 6 h on one GPU (estimated)
# Paper:    none of CoDe-MAE
# Ours:     not yet run
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,7s/^# //p' "$0" >&2; exit 2; fi
encoder=$1 index=$2
output=${3:-runs/bright_standard_ml}
shift $(( $# < 3 ? $# : 3 ))
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" bright/main.py train --config bright/configs/standard_ml.yaml \
  --encoder "$encoder" --data.index "$index" --output_dir "$output" "$@"
