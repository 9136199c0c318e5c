"""Evaluation of critics against returns."""
