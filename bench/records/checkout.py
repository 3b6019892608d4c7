"""Commit that a result belongs to."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"


def commit() -> str | None:
    """Return the commit checked out here, with "-dirty" if files differ from it.

    None if git or its repository is missing. Changes in bench/results do not count.
    """
    head = _git("rev-parse", "--short", "HEAD")
    changed = head and _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    return f"{head}-dirty" if changed else head or None


def _git(*command: str) -> str:
    """Return the output of git; empty if it fails or is missing."""
    try:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
