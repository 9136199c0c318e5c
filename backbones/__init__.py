"""Frozen or trainable encoders and temporal heads."""
