#!/usr/bin/env bash
# Several encoders side by side, fine-tuned with 10 and with 40 images a class, five seeds each, at 64 px.
# command:  bash classification/side_by_side.sh eurosat_rgb|mstar INDEX_DIR OUTPUT_DIR ENCODER [ENCODER ...] [--key value ...]
# hardware: 2 CPU cores
# output:   OUTPUT_DIR/{10,40}shot/ENCODER/results.json and OUTPUT_DIR/table.md, made of them
set -euo pipefail

folder="$(dirname "$0")" python="${PYTHON:-python}"
if [ "$#" -lt 4 ] || [ ! -f "$folder/configs/$1_40shot_cpu.yaml" ]; then
  sed -n 's/^# command:  /usage: /p' "$0" >&2
  exit 2
fi
dataset=$1 index=$2 output=$3
shift 3
encoders=()
while [ "$#" -gt 0 ] && [ "${1#--}" = "$1" ]; do
  encoders+=("$1")
  shift
done

for shots in 10 40; do
  for encoder in "${encoders[@]}"; do
    "$python" "$folder/main.py" --config "$folder/configs/${dataset}_${shots}shot_cpu.yaml" --encoder "$encoder" \
      --data.index "$index" --output_dir "$output/${shots}shot/${encoder//[^[:alnum:]._-]/_}" "$@"
  done
done
"$python" -m codemae.cli summary "$output" --side-by-side --markdown | tee "$output/table.md"
