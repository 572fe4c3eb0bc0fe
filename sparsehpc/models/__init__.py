"""Models: where weights come from, how they are named, and the layer-by-layer walk."""
