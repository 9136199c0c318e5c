"""Evaluation of critics."""
