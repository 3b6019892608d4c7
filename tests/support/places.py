"""Folders of this checkout that tests read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
VECTORS = ROOT / "tests" / "vectors"
