"""One YAML per experiment; the first line of each is the command that runs it."""
