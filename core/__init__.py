"""Batches, interfaces, returns, losses, metrics and saved components, on which everything else is built."""
