"""Registered Gymnasium environments behind the task protocol."""
