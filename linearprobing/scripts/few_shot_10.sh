#!/usr/bin/env bash
# An encoder and its own random initialisation, 10 shots a class, side by side.
# usage: few_shot_10.sh ENCODER.safetensors INDEX_DIR optical|sar|both OUTPUT_DIR [more --key value ...]
set -euo pipefail

if [ "$#" -lt 4 ]; then
  echo "usage: $0 ENCODER.safetensors INDEX_DIR optical|sar|both OUTPUT_DIR [--key value ...]" >&2
  exit 2
fi
encoder=$1 index=$2 modality=$3 output=$4
shift 4
cd "$(dirname "$0")/../.."

for arm in pretrained random; do
  name=$encoder
  if [ "$arm" = random ]; then name="random:$encoder"; fi
  python linearprobing/main.py --config linearprobing/configs/few_shot_10.yaml --encoder "$name" \
    --data.index "$index" --modality "$modality" --output_dir "$output/$arm" --cache_dir "$output/features" "$@"
done
codemae compare "$output/random" "$output/pretrained"
