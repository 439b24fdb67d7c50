#!/usr/bin/env bash
# UC Merced land use, 21 classes.
# Usage:    bash classification/scripts/ucmerced.sh ENCODER INDEX_DIR [OUTPUT_DIR] [--key value ...]
# Hardware: one GPU of 24 GB
# Hours:    about 30 min (estimated)
# Paper:    99.22 with ResNet-50, 99.48 with Swin-B (CMID)
# Ours:     not yet run
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,7s/^# //p' "$0" >&2; exit 2; fi
encoder=$1 index=$2
output=${3:-runs/ucmerced}
shift $(( $# < 3 ? $# : 3 ))
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" classification/main.py --config classification/configs/ucmerced.yaml \
  --encoder "$encoder" --data.index "$index" --output_dir "$output" "$@"
