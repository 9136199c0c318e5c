"""A training callback that detects reward hacking."""
