"""Loops around a policy optimizer: which initial states are played next."""
