"""Pruning: the contract, exact-count selection, and one file per method."""
