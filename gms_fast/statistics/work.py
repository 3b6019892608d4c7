"""What an unfinished measurement has so far, in memory and in a file beside the one it will become."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gms_fast.configuration import check_same
from gms_fast.storage import tensors

FORMAT = "gms_fast unfinished statistics 1"
SECONDS = 30.0  # between two writes


class Work:
    """Rows of named results, one a node, in order."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.rows: dict[str, list[Tensor]] = {name: [] for name in names}
        self.path: Path | None = None

    def keep_in(self, path: Path, configuration: dict[str, Any]) -> None:
        """Go on from the rows in `path`, if it is there, and keep them there from now on.

        configuration  what the rows depend on, JSON; ValueError naming what differs for a file of another one
        """
        self.path, self._written = path, time.monotonic()
        self._metadata = {"format": FORMAT, "configuration": json.dumps(configuration)}
        if path.exists():
            stored, metadata = tensors.read(path, FORMAT, self.rows, self._metadata)
            message = f"{path} is of another measurement; delete it or choose another file"
            check_same(*(json.loads(m["configuration"]) for m in (metadata, self._metadata)), message)
            self.rows = {name: list(stored[name]) for name in self.rows}

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))

    def add(self, name: str, row: Tensor) -> None:
        """One row more of `name`, written with the others if the last time is some while ago."""
        self.rows[name].append(row.cpu())
        if self.path is not None and time.monotonic() - self._written > SECONDS:
            self.write()

    def write(self) -> None:
        """Write all rows, if there is a file to write to."""
        if self.path is None:
            return
        rows = {name: torch.stack(rows) if rows else torch.empty(0, device="cpu") for name, rows in self.rows.items()}
        tensors.write(self.path, rows, self._metadata)
        self._written = time.monotonic()

    def delete(self) -> None:
        """Remove the file, if there is one."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
