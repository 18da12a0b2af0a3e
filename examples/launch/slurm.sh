#!/bin/bash
# Train on 2 machines with 8 GPUs each. Submit with: sbatch examples/launch/slurm.sh configs/small.yaml
# Slurm sends SIGUSR1 ten minutes before the time limit: the run writes a checkpoint and stops. Submit again to continue.
#SBATCH --job-name=tst
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export OMP_NUM_THREADS=8

srun torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
  --signals-to-handle SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout 300 \
  -m token_superposition train "$1"
