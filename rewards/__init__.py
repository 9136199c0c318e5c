"""Trainable and zero-shot reward models, and their training."""
