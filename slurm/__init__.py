"""The cluster: profiles, resources, the submitit executor, ledger, queue, sbatch scripts. It loads no torch."""
