"""Rewards, environments and preference data for the trainers of TRL."""
