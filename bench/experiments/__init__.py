"""Experiments about samplers, with exact and with learned moments."""
