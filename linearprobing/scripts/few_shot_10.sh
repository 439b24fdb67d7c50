#!/usr/bin/env bash
# An encoder and its own random initialisation, 10 shots a class, five seeds, side by side.
# command:  bash linearprobing/scripts/few_shot_10.sh ENCODER.safetensors INDEX_DIR optical|sar|both OUTPUT_DIR [--key value ...]
# hardware: one GPU or a CPU; the encoder passes over each image once, twice in all
set -euo pipefail

if [ "$#" -lt 4 ]; then
  sed -n 's/^# command:  /usage: /p' "$0" >&2
  exit 2
fi
encoder=$1 index=$2 modality=$3 output=$4 folder="$(dirname "$0")/.." python="${PYTHON:-python}"
shift 4

for arm in pretrained random; do
  name=$encoder
  if [ "$arm" = random ]; then name="random:$encoder"; fi
  "$python" "$folder/main.py" --config "$folder/configs/few_shot_10.yaml" --encoder "$name" --data.index "$index" \
    --modality "$modality" --output_dir "$output/$arm" --cache_dir "$output/features" "$@"
done
"$python" -m codemae.cli compare "$output/random" "$output/pretrained"
