#!/usr/bin/env bash
# One benchmark of the paper on optical, on SAR and on both, by the published protocol: what scripts/NAME.sh call.
# command:  bash linearprobing/published.sh NAME ENCODER INDEX_DIR OUTPUT_DIR [--key value ...]
# For figures of your own add --protocol clean --few_shot per_class.
set -euo pipefail

folder="$(dirname "$0")" python="${PYTHON:-python}"
if [ "$#" -lt 4 ] || [ ! -f "$folder/configs/$1.yaml" ]; then
  echo "usage: bash linearprobing/scripts/${1:-NAME}.sh ENCODER INDEX_DIR OUTPUT_DIR [--key value ...]" >&2
  exit 2
fi
name=$1 encoder=$2 index=$3 output=$4
shift 4

for modality in optical sar both; do
  "$python" "$folder/main.py" --config "$folder/configs/$name.yaml" --encoder "$encoder" --data.index "$index" \
    --modality "$modality" --output_dir "$output/$modality" --cache_dir "$output/features" "$@"
done
"$python" -m codemae.cli summary "$output"
