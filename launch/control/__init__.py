"""The controller of a run, its children, its pace and its checkpoints."""
