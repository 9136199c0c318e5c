"""Rewards of pretrained models that need no training."""
