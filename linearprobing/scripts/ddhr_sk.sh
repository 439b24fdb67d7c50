#!/usr/bin/env bash
# DDHR-SK.
# command:  linearprobing/scripts/ddhr_sk.sh ENCODER INDEX_DIR OUTPUT_DIR   (INDEX_DIR: datasets/prepare.py ddhr_sk)
# hardware: one GPU or a CPU; the encoder passes over each image once
# hours:    not yet measured at full size
# paper's number (10-shot, optical / SAR, micro mAP, its own protocol): 84.86 / 89.20
# ours:     not yet run
# usage: ddhr_sk.sh ENCODER INDEX_DIR OUTPUT_DIR [more --key value ...]
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
  python "$root/linearprobing/main.py" --config "$root/linearprobing/configs/ddhr_sk.yaml" --encoder "$encoder" \
    --data.index "$index" --modality "$modality" --output_dir "$output/$modality" --cache_dir "$output/features" "$@"
done
codemae summary "$output"
