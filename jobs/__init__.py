"""The work: studies, the plan of cells, what a node runs, and the command line."""
