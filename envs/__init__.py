"""Simulated tasks behind one vector-environment protocol."""
