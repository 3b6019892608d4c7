"""The origin of a result: its commit, its environment, its file."""
