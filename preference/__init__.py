"""Learning from preferences between trajectories."""
