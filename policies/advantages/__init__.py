"""Advantage sources."""
