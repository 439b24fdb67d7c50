#!/usr/bin/env bash
# SEN12MS scene classification, one label an image, both modalities.
# Usage:    bash classification/scripts/sen12ms.sh ENCODER INDEX_DIR [OUTPUT_DIR] [--key value ...]
# Hardware: one GPU of 24 GB
# Hours:    about 6 h (estimated)
# Paper:    see Fus-MAE for its top-1, top-3, weighted precision, recall and F1
# Ours:     not yet run
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,7s/^# //p' "$0" >&2; exit 2; fi
encoder=$1 index=$2
output=${3:-runs/sen12ms}
shift $(( $# < 3 ? $# : 3 ))
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" classification/main.py --config classification/configs/sen12ms.yaml \
  --encoder "$encoder" --data.index "$index" --output_dir "$output" "$@"
