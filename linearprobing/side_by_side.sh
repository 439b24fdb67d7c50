#!/usr/bin/env bash
# Several encoders side by side: linear probe and nearest neighbours, ten shots a class and all labels, five seeds.
# command:  bash linearprobing/side_by_side.sh INDEX_DIR optical|sar|both OUTPUT_DIR ENCODER [ENCODER ...] [--key value ...]
# hardware: one GPU or a CPU; each encoder passes over each image once
# output:   OUTPUT_DIR/{few_shot_10,all_images}/ENCODER/results.json and OUTPUT_DIR/table.md, made of them
set -euo pipefail

if [ "$#" -lt 4 ]; then
  sed -n 's/^# command:  /usage: /p' "$0" >&2
  exit 2
fi
folder="$(dirname "$0")" python="${PYTHON:-python}"
index=$1 modality=$2 output=$3
shift 3
encoders=()
while [ "$#" -gt 0 ] && [ "${1#--}" = "$1" ]; do
  encoders+=("$1")
  shift
done

for config in few_shot_10 all_images; do
  for encoder in "${encoders[@]}"; do
    "$python" "$folder/main.py" --config "$folder/configs/$config.yaml" --encoder "$encoder" --data.index "$index" \
      --modality "$modality" --output_dir "$output/$config/${encoder//[^[:alnum:]._-]/_}" --cache_dir "$output/features" "$@"
  done
done
"$python" -m codemae.cli summary "$output" --side-by-side --markdown | tee "$output/table.md"
