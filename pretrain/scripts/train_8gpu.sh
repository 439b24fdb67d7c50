#!/usr/bin/env bash
# One node with 8 GPUs: the paper's setting of 128 pairs a GPU.
# Usage: bash pretrain/scripts/train_8gpu.sh CONFIG INDEX_DIR[,INDEX_DIR...] [OUTPUT_DIR] [--key value ...]
# The same command resumes a run that was stopped. NPROC=N uses another number of GPUs.
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,4s/^# //p' "$0" >&2; exit 2; fi
config=$1 index=$2
output=${3:-runs/$(basename "$config" .yaml)}
shift $(( $# < 3 ? $# : 3 ))
cd "$(dirname "$0")/../.."
exec "${TORCHRUN:-torchrun}" --standalone --nproc_per_node="${NPROC:-8}" pretrain/main.py \
  --config "$config" --data.index "$index" --output_dir "$output" "$@"
