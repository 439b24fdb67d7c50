#!/usr/bin/env bash
# BigEarthNet-MM, 19 classes, several labels an image, 1 % of the labels, Sentinel-1 and 2 together.
# Usage:    bash classification/scripts/bigearthnet_mm_both.sh ENCODER INDEX_DIR [OUTPUT_DIR] [--key value ...]
# Hardware: one GPU of 24 GB
# Hours:    about 2 h (estimated)
# Paper:    micro mAP 81.5 fine-tuned (DeCUR); 68.7, S1 + S2 (Fus-MAE)
# Ours:     not yet run
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,7s/^# //p' "$0" >&2; exit 2; fi
encoder=$1 index=$2
output=${3:-runs/bigearthnet_mm_both}
shift $(( $# < 3 ? $# : 3 ))
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" classification/main.py --config classification/configs/bigearthnet_mm_both.yaml \
  --encoder "$encoder" --data.index "$index" --output_dir "$output" "$@"
