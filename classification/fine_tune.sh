#!/usr/bin/env bash
# Fine-tunes an encoder by one config: what scripts/NAME.sh call.
# command:  bash classification/fine_tune.sh NAME ENCODER INDEX_DIR [OUTPUT_DIR] [--key value ...]
# On N GPUs of one machine: LAUNCH="torchrun --nproc_per_node=N" bash classification/fine_tune.sh ...
set -euo pipefail

folder="$(dirname "$0")"
if [ "$#" -lt 3 ] || [ ! -f "$folder/configs/$1.yaml" ]; then
  echo "usage: bash classification/scripts/${1:-NAME}.sh ENCODER INDEX_DIR [OUTPUT_DIR] [--key value ...]" >&2
  exit 2
fi
name=$1 encoder=$2 index=$3 output="runs/$1"
shift 3
if [ "$#" -gt 0 ] && [ "${1#--}" = "$1" ]; then
  output=$1
  shift
fi
# shellcheck disable=SC2086  # a launcher is several words
exec ${LAUNCH:-${PYTHON:-python}} "$folder/main.py" --config "$folder/configs/$name.yaml" --encoder "$encoder" \
  --data.index "$index" --output_dir "$output" "$@"
