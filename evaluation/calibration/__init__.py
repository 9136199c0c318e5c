"""Calibration of reward models on a held-out split."""
