"""Fault tests: damaged files, kills, random values and layouts, all numbers of steps."""
