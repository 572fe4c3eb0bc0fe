"""A real, private Slurm cluster on one machine: two CPU nodes, a GPU node, accounting. For tests and newcomers."""

from slurm.testbed.cluster import Testbed, default_folder, missing_packages

__all__ = ["Testbed", "default_folder", "missing_packages"]
