"""Timing of decoding: cells of one model against the same model on our own dense kernels."""
