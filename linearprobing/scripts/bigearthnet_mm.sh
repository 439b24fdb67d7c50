#!/usr/bin/env bash
# BigEarthNet-MM, 19 classes: trained on train, evaluated on val, as published.
# command:  linearprobing/scripts/bigearthnet_mm.sh ENCODER INDEX_DIR OUTPUT_DIR   (INDEX_DIR: datasets/prepare.py bigearthnet_mm)
# hardware: one GPU or a CPU; the encoder passes over each image once
# hours:    not yet measured at full size
# paper's number (10-shot, optical / SAR, micro mAP, its own protocol): 65.38 / 57.97
# ours:     not yet run
# usage: bigearthnet_mm.sh ENCODER INDEX_DIR OUTPUT_DIR [more --key value ...]
# Optical, SAR and both, by the published protocol; for figures of your own add --protocol clean --few_shot per_class.
set -euo pipefail

if [ "$#" -lt 3 ]; then
  echo "usage: $0 ENCODER INDEX_DIR OUTPUT_DIR [--key value ...]" >&2
  exit 2
fi
encoder=$1 index=$2 output=$3
shift 3
root="$(dirname "$0")/../.."

for modality in optical sar both; do
  python "$root/linearprobing/main.py" --config "$root/linearprobing/configs/bigearthnet_mm.yaml" --encoder "$encoder" \
    --data.index "$index" --modality "$modality" --output_dir "$output/$modality" --cache_dir "$output/features" "$@"
done
codemae summary "$output"
