#!/usr/bin/env bash
# BRIGHT, cross-event transfer: one disaster is unseen (zero shots), or one tile of it trains and one selects (--data.shots 1).
# Usage:    bash bright/scripts/cross_event.sh ENCODER INDEX_DIR [OUTPUT_DIR] [--key value ...]
# Hardware: one GPU of 24 GB
# Hours:    about 6 h a disaster on one GPU (estimated)
# Paper:    none of CoDe-MAE
# Ours:     not yet run
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,7s/^# //p' "$0" >&2; exit 2; fi
encoder=$1 index=$2
output=${3:-runs/bright_cross_event}
shift $(( $# < 3 ? $# : 3 ))
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" bright/main.py train --config bright/configs/cross_event.yaml \
  --encoder "$encoder" --data.index "$index" --output_dir "$output" "$@"
