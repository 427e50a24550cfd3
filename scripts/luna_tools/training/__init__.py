"""Training by the YAMLs of configs/, and the average of checkpoints."""
