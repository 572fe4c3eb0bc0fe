"""Model families: one table of tensor names and shapes each, no torch."""
