#!/usr/bin/env bash
# Several nodes under Slurm, torchrun's rendezvous on the first of them.
# Usage: sbatch --nodes=4 pretrain/scripts/train_slurm.sh CONFIG INDEX_DIR[,INDEX_DIR...] [OUTPUT_DIR] [--key value ...]
# With other node counts than the config was written for, set --optim.batch_per_gpu or --optim.global_batch.
# The folder must be shared by all nodes. Slurm's SIGTERM writes a checkpoint; --requeue then resumes by itself.
#SBATCH --job-name=codemae
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,5s/^# //p' "$0" >&2; exit 2; fi
config=$1 index=$2
output=${3:-runs/$(basename "$config" .yaml)}
shift $(( $# < 3 ? $# : 3 ))
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/../..}"
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-8}" \
  --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$head_node:${RDZV_PORT:-29500}" \
  pretrain/main.py --config "$config" --data.index "$index" --output_dir "$output" "$@"
