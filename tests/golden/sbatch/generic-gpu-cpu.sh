#!/bin/bash
#SBATCH --array=0-39%40
#SBATCH --cpus-per-task=2
#SBATCH --error=/runs/study/submissions/0a/%A_%a_0_log.err
#SBATCH --job-name=study-0a
#SBATCH --mem=8192M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/study/submissions/0a/%A_%a_0_log.out
#SBATCH --partition=cpu
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
export SPARSEHPC_HOME=/shared/models
export SUBMITIT_EXECUTOR=slurm
unset SLURM_EXPORT_ENV

# command
srun --unbuffered --output /runs/study/submissions/0a/%A_%a_%t_log.out --error /runs/study/submissions/0a/%A_%a_%t_log.err sh -c 'trap "" TERM; exec "$@"' sh /opt/env/bin/python -u -m slurm.task /runs/study/submissions/0a
