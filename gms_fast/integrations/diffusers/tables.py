"""Tables that a configuration names by file: copied on saving, found again on loading."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gms_fast.solvers import text


def kept(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Copy the tables of a configuration to a folder, and name them by their files there.

    Tables of embedded models keep their names.
    """

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
    """Replace the names of tables in a folder by their full paths."""
    return _renamed(config, lambda name: str((folder / name).resolve()) if (folder / name).is_file() else name)


def _renamed(config: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    changed = {name: change(config[name]) for name in text.NAMES_OF_TABLES if isinstance(config.get(name), str)}
    if isinstance(config.get("solver"), str):
        changed["solver"] = text.with_tables(config["solver"], change)
    return {**config, **changed}
