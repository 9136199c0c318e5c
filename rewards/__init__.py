"""Trainable reward models, their training and offline scoring."""
