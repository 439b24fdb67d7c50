#!/usr/bin/env bash
# Fine-tunes and scores a detector on one GPU, with the 16 images a step of the published runs.
# Command:  bash detection/scripts/1gpu.sh CONFIG_NAME ENCODER [WORK_DIR] [KEY=VALUE ...]
# Hardware: one GPU of 80 GB; with less, BATCH=4 accumulates four calls to a step; BATCH must divide 16
set -euo pipefail

folder="$(dirname "$0")/.."
if [ "$#" -lt 2 ] || [ ! -f "$folder/configs/$1.py" ]; then
  echo "usage: bash detection/scripts/1gpu.sh CONFIG_NAME ENCODER [WORK_DIR] [KEY=VALUE ...]" >&2
  echo "configs: $(cd "$folder/configs" && ls ./*.py | sed 's/^..//; s/.py$//' | tr '\n' ' ')" >&2
  exit 2
fi
name=$1 encoder=$2 work_dir="runs/detection/$1"
shift 2
if [ "$#" -gt 0 ] && [ "${1#*=}" = "$1" ]; then
  work_dir=$1
  shift
fi
batch=${BATCH:-16}
case $batch in
  1 | 2 | 4 | 8 | 16) ;;
  *)
    echo "error: BATCH is '$batch'; a step has 16 images, so take 1, 2, 4, 8 or 16" >&2
    exit 2
    ;;
esac
exec "${PYTHON:-python}" "$folder/main.py" train "$folder/configs/$name.py" --encoder "$encoder" --work-dir "$work_dir" \
  --cfg-options train_dataloader.batch_size="$batch" optim_wrapper.accumulative_counts=$((16 / batch)) "$@"
