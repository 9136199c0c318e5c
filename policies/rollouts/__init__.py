"""Rollouts of policies in simulated tasks."""
