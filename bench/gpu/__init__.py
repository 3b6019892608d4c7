"""A session on a GPU: its parts and limits, its targets, and a rehearsal without one."""
