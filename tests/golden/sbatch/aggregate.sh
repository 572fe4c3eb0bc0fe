#!/bin/bash
#SBATCH --cpus-per-task=2
#SBATCH --dependency=afterany:7:12
#SBATCH --error=/runs/study/submissions/0b/%j_log.err
#SBATCH --job-name=study-0b
#SBATCH --mem=8192M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=/runs/study/submissions/0b/%j_log.out
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
srun --unbuffered /opt/env/bin/python -u -m jobs aggregate /runs/study || exit
srun --unbuffered /opt/env/bin/python -u -m jobs report /runs/study
