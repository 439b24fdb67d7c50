#!/usr/bin/env bash
# BRIGHT / DFC25-T2 as the paper's Table VIII reads: cross-entropy, 30,000 steps of 8 pairs, last step.
# Usage:    bash bright/scripts/paper.sh ENCODER INDEX_DIR [OUTPUT_DIR] [--key value ...]
# Hardware: one GPU of 24 GB
# Hours:    about 6 h on one GPU (estimated)
# Paper:    43.75 mIoU (CoDe-MAE; which list it is of is not stated)
# Ours:     not yet run
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,7s/^# //p' "$0" >&2; exit 2; fi
encoder=$1 index=$2
output=${3:-runs/bright_paper}
shift $(( $# < 3 ? $# : 3 ))
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" bright/main.py train --config bright/configs/paper.yaml \
  --encoder "$encoder" --data.index "$index" --output_dir "$output" "$@"
