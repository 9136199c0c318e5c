"""Milestone rewards (the robotic process reward of VLA-RL)."""
