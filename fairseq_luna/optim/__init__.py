"""Optimizers and learning rates that the paper trains with."""
