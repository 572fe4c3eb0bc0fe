"""Text: corpora, and the fixed token windows that are measured and calibrated on."""
