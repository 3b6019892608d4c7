#!/bin/bash
# Slurm: 8 nodes with 8 GPUs each fill one folder on a shared file system. To resume, submit the job again.
#SBATCH --job-name=generate
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60

# Every node runs its own torchrun. Ranks share only the folder, so a node may start late or fail without the others.
srun --kill-on-bad-exit=0 --cpus-per-task=64 torchrun --standalone --nproc-per-node 8 --max-restarts 100 -m gms_fast -- \
    generate --model /shared/model --n 1000000 --batch-size 256 --out /shared/pictures
