"""Adapters for other libraries; each imports its host where it is used."""
