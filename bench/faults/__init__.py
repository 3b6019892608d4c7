"""Trials of what might break: files, kills, values, layouts, numbers of steps."""
