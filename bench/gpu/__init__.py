"""GPU sessions: their parts and time limits, their targets, and a rehearsal without a GPU."""
