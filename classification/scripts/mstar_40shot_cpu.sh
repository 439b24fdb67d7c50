#!/usr/bin/env bash
# MSTAR SOC, ten classes, 40 images a class, hivit_tiny at 64 px, five seeds.
# Usage:    bash classification/scripts/mstar_40shot_cpu.sh ENCODER INDEX_DIR [OUTPUT_DIR] [--key value ...]
# Hardware: 2 CPU cores
# Hours:    about 3 min for five seeds (estimated)
# Paper:    none; a check that the machinery works
# Ours:     not yet run
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,7s/^# //p' "$0" >&2; exit 2; fi
encoder=$1 index=$2
output=${3:-runs/mstar_40shot_cpu}
shift $(( $# < 3 ? $# : 3 ))
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" classification/main.py --config classification/configs/mstar_40shot_cpu.yaml \
  --encoder "$encoder" --data.index "$index" --output_dir "$output" "$@"
