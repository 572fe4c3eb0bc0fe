#!/bin/bash
#SBATCH --cpus-per-task=2
#SBATCH --error=/runs/study/logs/0123456789abcdef0123-%j.err
#SBATCH --job-name=cell-0123456789abcdef0123
#SBATCH --mem=8192M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=/runs/study/logs/0123456789abcdef0123-%j.out
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=30

# environment
export PYTHONUNBUFFERED=1
export PYTHONSAFEPATH=1
export HF_HUB_OFFLINE=1
export TRANSFORMERS_OFFLINE=1
export OMP_NUM_THREADS=2
export SRUN_CPUS_PER_TASK=2
unset SLURM_EXPORT_ENV

# command
srun --unbuffered /opt/env/bin/python -u -m jobs cell /runs/study 0123456789abcdef0123
