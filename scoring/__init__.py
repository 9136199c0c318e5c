"""Offline scoring of whole data sets."""
