"""Policies, objectives, advantage sources, rollouts and the policy optimizer."""
