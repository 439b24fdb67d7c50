#!/usr/bin/env bash
# BRIGHT / DFC25-T2, DamageFormer head: our defaults. The step is chosen on holdout; val and test are opened afterwards.
# Usage:    bash bright/scripts/clean.sh ENCODER INDEX_DIR [OUTPUT_DIR] [--key value ...]
# Hardware: one GPU of 24 GB, or torchrun --nproc_per_node=N
# Hours:    about 6 h on one GPU (estimated)
# Paper:    none with this selection; 43.75 mIoU (CoDe-MAE, list not stated)
# Ours:     not yet run
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,7s/^# //p' "$0" >&2; exit 2; fi
encoder=$1 index=$2
output=${3:-runs/bright_clean}
shift $(( $# < 3 ? $# : 3 ))
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" bright/main.py train --config bright/configs/clean.yaml \
  --encoder "$encoder" --data.index "$index" --output_dir "$output" "$@"
