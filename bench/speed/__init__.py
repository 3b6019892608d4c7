"""Speed of each op beside its rivals, and the host's time for one call."""
