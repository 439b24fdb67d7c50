#!/usr/bin/env bash
# Floods of OMBRIA on two CPU cores: optical, SAR and both, with an encoder and from random weights, compared.
# Usage: bash segmentation/scripts/ombria_cpu.sh ENCODER_FILE IMAGES_DIR [OUTPUT_DIR]
# IMAGES_DIR holds opt, sar, mask and scenes.csv. Random weights take the file's architecture.
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,4s/^# //p' "$0" >&2; exit 2; fi
encoder=$1 images=$2 out=${3:-runs/segmentation/ombria}
if [ ! -f "$encoder" ]; then
  echo "error: no encoder file at $encoder; a released name is made one by: codemae convert NAME FILE" >&2
  exit 2
fi
here="$(dirname "$0")/.."
python="${PYTHON:-python}"
export OMBRIA_INDEX="$out/index"
"$python" "$here/flood_scenes.py" --root "$images" --out "$OMBRIA_INDEX"
for modality in optical sar both; do
  for start in pretrained random; do
    name=$encoder
    if [ "$start" = random ]; then name="random:$encoder"; fi
    "$python" "$here/main.py" train "$here/configs/upernet_hivit-tiny_1xb8-800_ombria-$modality-128x128.py" \
      --encoder "$name" --work-dir "$out/${modality}_$start"
  done
done
"$python" -m codemae.cli compare "$out"/{optical,sar,both}_{pretrained,random}
