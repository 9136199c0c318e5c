"""Evaluation of reward models, critics and policies."""
