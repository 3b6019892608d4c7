"""Adapters for other libraries; each imports its host library on first use."""
