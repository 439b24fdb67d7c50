#!/usr/bin/env bash
# The stand-in with an optical second date, which clouds often hide: what SAR adds.
# Usage:    bash bright/scripts/ombria_optical_cpu.sh ENCODER INDEX_DIR [OUTPUT_DIR] [--key value ...]
# Hardware: 2 CPU cores
# Hours:    12 min on one core, measured
# Paper:    none; not BRIGHT
# Ours:     see README
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,7s/^# //p' "$0" >&2; exit 2; fi
encoder=$1 index=$2
output=${3:-runs/bright_ombria_optical_cpu}
shift $(( $# < 3 ? $# : 3 ))
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" bright/main.py train --config bright/configs/ombria_optical_cpu.yaml \
  --encoder "$encoder" --data.index "$index" --output_dir "$output" "$@"
