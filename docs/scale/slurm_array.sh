#!/bin/bash
# Slurm without a shared file system: each job of the array draws the K-th of 64 shares on its own disk, then copies it.
#SBATCH --job-name=generate
#SBATCH --array=1-64
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue

torchrun --standalone --nproc-per-node 1 -m gms_fast -- \
    generate --model "$HOME/model" --n 1000000 --batch-size 256 --shard "$SLURM_ARRAY_TASK_ID/64" --out /local/pictures
rsync --archive --exclude measured --exclude measured.safetensors /local/pictures/ storage:/pictures/
