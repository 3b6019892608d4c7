"""Tables of solvers that a configuration names by file: saved beside it, and found there."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gms_fast.solvers import text


def kept(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with its tables copied to a folder and named by their files there; embedded ones keep names."""

    def copied(name: str) -> str:
        source = Path(name)
        if not source.is_file():
            return name
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / source.name
        if not (target.exists() and target.samefile(source)):
            shutil.copyfile(source, target)
        return source.name

    return _renamed(config, copied)


def found(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with the tables that lie in the folder named by where they are."""
    return _renamed(config, lambda name: str((folder / name).resolve()) if (folder / name).is_file() else name)


def _renamed(config: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    changed = {name: change(config[name]) for name in text.NAMES_OF_TABLES if isinstance(config.get(name), str)}
    if isinstance(config.get("solver"), str):
        changed["solver"] = text.with_tables(config["solver"], change)
    return {**config, **changed}
