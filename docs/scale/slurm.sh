#!/bin/bash
# Slurm: 8 nodes of 8 GPUs fill one folder on a file system that all of them see. Submit it again to go on.
#SBATCH --job-name=generate
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60

# Every node has a torchrun of its own: ranks share nothing but the folder, so that a node may come late or fail alone.
srun --kill-on-bad-exit=0 --cpus-per-task=64 torchrun --standalone --nproc-per-node 8 --max-restarts 100 -m gms_fast -- \
    generate --model /shared/model --n 1000000 --batch-size 256 --out /shared/pictures
