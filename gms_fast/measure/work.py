"""Finished rows of an unfinished measurement, in memory and in a file beside its result."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gms_fast.storage import atomic, fingerprints, tensors
from gms_fast.storage.configuration import check_same
from gms_fast.storage.reading import metadata, refusing
from gms_fast.storage.schema import Fields, Plain

FORMAT = "gms_fast unfinished statistics 1"
SECONDS = 30.0  # least time between two writes
_REPLACES = "replaces"  # metadata key of rows that are to replace a finished file


class Work:
    """Rows of named results in order, one per node or sample.

    `most` holds for each name the final number of rows and the shape of one.
    """

    def __init__(self, most: dict[str, tuple[int, tuple[int, ...]]]) -> None:
        self.most = most
        self.rows: dict[str, list[Tensor]] = {name: [] for name in most}
        self.path: Path | None = None

    def keep_for(
        self, out: Path, configuration: dict[str, Any], beside: dict[str, Any], *, resume: bool, replace: bool
    ) -> bool:
        """Resume from the rows in `<out>.partial`, if it exists, and keep rows there from now on.

        `configuration` (JSON) is what the rows depend on, `beside` (JSON) what the result depends on besides.
        Returns True if nothing is left to do because `out` is the result of an equal configuration. Raises
        FileExistsError for files that may be neither resumed nor replaced, and ValueError naming the difference for
        rows of another configuration.
        """
        self.path, self._written = partial(out), time.monotonic()
        text = json.dumps(configuration)
        self.measurement = fingerprints.of_values(configuration, beside)
        self._metadata = {"format": FORMAT, "configuration": text}
        replaces = replace or (self.path.exists() and _REPLACES in tensors.metadata_of(self.path))
        if replaces:
            self._metadata[_REPLACES] = str(out)
        if replace:
            self.delete()
            return False
        if resume and out.exists() and tensors.metadata_of(out).get("measurement") == self.measurement:
            self.delete()
            return True
        if out.exists() and not (resume and replaces):
            other = " and is of another measurement" if resume else ""
            raise FileExistsError(f"out: {out} already exists{other}; delete it or choose another file")
        if self.path.exists():
            if not resume:
                raise FileExistsError(f"out: {self.path} holds an unfinished measurement: resume it or delete it")
            stored, said = tensors.read(self.path, FORMAT, self.rows, ("format", "configuration"))
            message = f"{self.path} is of another measurement; delete it or choose another file"
            check_same(_configuration(self.path, said), json.loads(text), message)
            self._check(self.path, stored)
            self.rows = {name: list(stored[name]) for name in self.rows}
        return False

    def _check(self, path: Path, stored: dict[str, Tensor]) -> None:
        """Raise ValueError naming rows that have another shape or are too many."""
        for name, (most, shape) in self.most.items():
            found = tuple(stored[name].shape)
            if found != (0,) and (found[1:] != shape or not 1 <= found[0] <= most):
                raise ValueError(f"statistics {path}: {name} is {found}, wanted at most {most} rows of {shape}")

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))

    def add(self, name: str, row: Tensor) -> None:
        """Add one row to `name`; all rows are written if the last write is some time ago."""
        self.rows[name].append(row.cpu())
        if self.path is not None and time.monotonic() - self._written > SECONDS:
            self._write(self.path)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write the rows to the file, if there is one, when an error ends the block."""
        try:
            yield
        except BaseException:
            if self.path is not None:
                self._write(self.path)
            raise

    def _write(self, path: Path) -> None:
        rows = {name: torch.stack(rows) if rows else torch.empty(0, device="cpu") for name, rows in self.rows.items()}
        tensors.write(path, rows, self._metadata)
        self._written = time.monotonic()

    def delete(self) -> None:
        """Remove the file, if there is one."""
        if self.path is not None:
            atomic.remove(self.path)


def partial(out: Path) -> Path:
    """Return the file of unfinished results for `out`."""
    return out.with_name(out.name + ".partial")


def _configuration(path: Path, stored: dict[str, str]) -> dict[str, Any]:
    with refusing(f"statistics {path}", path):
        return metadata(stored, {"configuration": Fields({}, others=Plain())})["configuration"]
