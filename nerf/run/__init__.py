"""What surrounds training: workspace, checkpoints, logs, evaluation, starting points."""
