"""Trainable value functions."""
