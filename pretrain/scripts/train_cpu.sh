#!/usr/bin/env bash
# No GPU: hivit_tiny with the EfficientNet-Lite0 teacher (pip install 'codemae[lite]'), under an hour on 2 cores.
# Usage: bash pretrain/scripts/train_cpu.sh INDEX_DIR[,INDEX_DIR...] [OUTPUT_DIR] [--key value ...]
# The same command resumes a run that was stopped.
set -euo pipefail
if [ $# -lt 1 ]; then sed -n '2,4s/^# //p' "$0" >&2; exit 2; fi
index=$1
output=${2:-runs/codemae_hivit_tiny_cpu}
shift $(( $# < 2 ? $# : 2 ))
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" pretrain/main.py --config pretrain/configs/codemae_hivit_tiny_cpu.yaml \
  --data.index "$index" --output_dir "$output" --device cpu "$@"
