"""Files of the models that this installation brings along, found by looking at what there is."""

from importlib import resources
from pathlib import Path


def embedded(pattern: str) -> list[Path]:
    """Files of that name, or of names like it, of all embedded models, each in a folder of its model's name."""
    return sorted(Path(str(resources.files("gms_fast.models"))).glob(f"*/{pattern}"))


def named(name: str | Path, file: str) -> Path | None:
    """That file of an embedded model; None for a name that none of them has."""
    return {path.parent.name: path for path in embedded(file)}.get(str(name))
