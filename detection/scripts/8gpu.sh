#!/usr/bin/env bash
# Fine-tunes and scores a detector on eight GPUs of one machine, two images each: the published batch of 16.
# Command:  bash detection/scripts/8gpu.sh CONFIG_NAME ENCODER [WORK_DIR] [KEY=VALUE ...]
# Hardware: eight GPUs of 24 GB; GPUS=N takes another count that divides 16 and keeps 16 images a step
set -euo pipefail

folder="$(dirname "$0")/.."
if [ "$#" -lt 2 ] || [ ! -f "$folder/configs/$1.py" ]; then
  echo "usage: bash detection/scripts/8gpu.sh CONFIG_NAME ENCODER [WORK_DIR] [KEY=VALUE ...]" >&2
  echo "configs: $(cd "$folder/configs" && ls ./*.py | sed 's/^..//; s/.py$//' | tr '\n' ' ')" >&2
  exit 2
fi
name=$1 encoder=$2 work_dir="runs/detection/$1"
shift 2
if [ "$#" -gt 0 ] && [ "${1#*=}" = "$1" ]; then
  work_dir=$1
  shift
fi
gpus=${GPUS:-8}
case $gpus in
  1 | 2 | 4 | 8 | 16) ;;
  *)
    echo "error: GPUS is '$gpus'; they share the 16 images of a step, so take 1, 2, 4, 8 or 16" >&2
    exit 2
    ;;
esac
exec "${TORCHRUN:-torchrun}" --nproc_per_node="$gpus" "$folder/main.py" train "$folder/configs/$name.py" \
  --encoder "$encoder" --work-dir "$work_dir" --launcher pytorch \
  --cfg-options train_dataloader.batch_size=$((16 / gpus)) "$@"
