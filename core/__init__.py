"""The contracts everything else is built on: batch types, interfaces, returns, losses, metrics, hub."""
