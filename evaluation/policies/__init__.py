"""Success rates of policies on held-out starts, with intervals, start by start."""
