"""Origin of a result: its commit, environment and file."""
