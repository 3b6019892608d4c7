"""Generation of many samples into a folder, by one or many processes (docs/generation.md)."""

from gms_fast.generation.clearing import clear as clear
from gms_fast.generation.job import Report as Report
from gms_fast.generation.loop import generate as generate
