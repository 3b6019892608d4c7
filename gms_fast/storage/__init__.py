"""Safe file access: atomic writes, locks, and readers that check every input."""
