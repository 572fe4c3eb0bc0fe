"""The science of sparsehpc: a model in, Arrow rows out, on one machine. Importing it imports no torch."""

__version__ = "0.1.0"
