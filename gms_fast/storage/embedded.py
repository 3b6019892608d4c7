"""Files of the embedded models, found by listing the installation."""

from importlib import resources
from pathlib import Path


def embedded(pattern: str) -> list[Path]:
    """Return the files that match a pattern in all embedded models' folders."""
    return sorted(Path(str(resources.files("gms_fast.models"))).glob(f"*/{pattern}"))


def named(name: str | Path, file: str) -> Path | None:
    """Return a file of the embedded model `name`, or None if no model of that name has it."""
    return {path.parent.name: path for path in embedded(file)}.get(str(name))
