"""Feature statistics of a run's images, counted part by part in one file per process.

A process holds its file by a claim. The next process that starts takes over the file of a dead one, so there are never
more files than there were processes at the same time.
"""

import os
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gms_fast.generation.capacity import out_of_memory
from gms_fast.generation.settings import MEASURED, WHOLE
from gms_fast.generation.shards import Cut
from gms_fast.quality.extractors import Extractor
from gms_fast.quality.running import Running
from gms_fast.storage import atomic, schema, tensors
from gms_fast.storage.claims import Claims, make
from gms_fast.storage.locks import naming
from gms_fast.storage.reading import metadata
from gms_fast.storage.schema import Fields, Integer, Listed, Text

_SUFFIX = ".safetensors"
_AT_A_TIME = 256  # images per feature batch; fewer after memory has run out
_SAID = Fields({"run": Text(64), "parts": Listed(Listed(Integer(0), 2, 2), 1 << 24)})  # first and last of each stretch


class Measured:
    """Feature statistics of the run with fingerprint `run` in the folder `out`."""

    def __init__(self, out: Path, cut: Cut, run: str, features: Extractor) -> None:
        self.out, self.cut, self.run, self.features, self.rows = out, cut, run, features, _AT_A_TIME
        self.own = out / MEASURED / f"{secrets.token_hex(8)}{_SUFFIX}"
        self._running: Running | None = None
        self._seen: dict[Path, tuple[tuple[int, int], set[int]]] = {}  # files at the last look: (time, inode), parts

    def begin(self, claims: Claims) -> None:
        """Take over the file of a dead process, if any. Raises ValueError for other features."""
        with naming(self.out):
            make(self.own.parent)
        self.done()
        waiting = {name for name in claims.names() if name.endswith(_SUFFIX)}  # some have no file yet
        for path in sorted({*self._files(), *(self.own.parent / name for name in waiting)}):
            if not claims.take(path.name):
                continue
            if self._running is None and path.exists() and (running := self._read(path)) is not None:
                self.own, self._running = path, running
            else:
                claims.drop(path.name)
        if self._running is None:
            claims.take(self.own.name)

    def end(self, claims: Claims) -> None:
        """Release the own claim, and those of processes that died since `begin`."""
        for name in claims.names():
            if name.endswith(_SUFFIX) and (name == self.own.name or claims.take(name)):
                claims.drop(name)

    def done(self) -> set[int]:
        """Return the parts that some file counts.

        Raises ValueError for a file of other features or of another run.
        """
        return set().union(*map(self._parts, self._files()))

    def add(self, part: int, pictures: Tensor, ours: Callable[[], bool]) -> None:
        """Count a part, unless another process has counted it or, as `ours` tells, taken it over."""
        rows = self._features(pictures)
        if part in self.done() or not ours():
            return
        running = self._running or Running(rows.shape[1], self.features.mark)
        running.update(rows, torch.tensor(self.cut[part]))
        parts = {part, *_parts_in(running.said.get("parts", []))}
        running.said = {"run": self.run, "parts": _stretches(parts)}
        running.save(self.own)
        self._running = running

    def finish(self, parts: set[int]) -> bool:
        """Merge all statistics into the file `WHOLE`; return False if some of the parts are missing.

        A file that is broken, or that counts a part of a larger file, is deleted with a warning. This happens when a
        process pauses while another takes over its part, and both count it.
        """
        found = [(path, running) for path in self._files() if (running := self._read(path)) is not None]
        counted = set[int]()
        whole: Running | None = None
        for path, running in sorted(found, key=lambda pair: -pair[1].count):
            own = _parts_in(running.said["parts"])
            if twice := own & counted:
                _forget(path, f"statistics {path} count {self.cut.name(min(twice))}, as another file does")
                continue
            counted |= own
            whole = running if whole is None else Running.merged([whole, running])
        if whole is None or not parts <= counted:
            return False
        whole.said = {"run": self.run, "parts": _stretches(counted)}
        whole.save(self.out / WHOLE)
        return True

    def _features(self, pictures: Tensor) -> Tensor:
        """Compute the features of images, fewer at a time if memory runs out."""
        while True:
            try:
                return torch.cat([self.features(some) for some in pictures.split(self.rows)])
            except RuntimeError as error:
                if not out_of_memory(error) or self.rows == 1:
                    raise
            self.rows //= 2

    def _files(self) -> list[Path]:
        with naming(self.out):
            return sorted(self.own.parent.glob(f"*{_SUFFIX}"))

    def _parts(self, path: Path) -> set[int]:
        """Return the parts that a file counts; a file is read again only after it has changed.

        A broken file counts none.
        """
        try:
            with path.open("rb") as file:  # network file systems refresh a file's status when it is opened
                seen = os.fstat(file.fileno())
            known = self._seen.get(path)
            if known is None or known[0] != (seen.st_mtime_ns, seen.st_ino):
                stored = metadata(tensors.metadata_of(path), {"features": Text(), "said": _SAID})
                known = (seen.st_mtime_ns, seen.st_ino), _parts_in(stored["said"]["parts"])
        except (FileNotFoundError, ValueError, KeyError):
            return set()
        if path not in self._seen:
            self._refuse_other(path, stored["features"], stored["said"]["run"])
        self._seen[path] = known
        return known[1]

    def _read(self, path: Path) -> Running | None:
        """Read the statistics in a file; a broken one is deleted with a warning and gives None."""
        try:
            running = Running.load(path)
            schema.check(f"statistics {path}", running.said, _SAID)
        except ValueError as error:
            _forget(path, str(error))
            return None
        self._refuse_other(path, running.features, running.said["run"])
        return running

    def _refuse_other(self, path: Path, features: str, run: str) -> None:
        """Raise ValueError for statistics of other features or of another run."""
        if features != self.features.mark:
            said = f"features must be those of {path}, {features}"
            raise ValueError(f"{said}: got {self.features.mark}. Delete {path.parent} to measure other features")
        if run != self.run:
            raise ValueError(f"{path} belongs to the run {run}, not to {self.run}")


def _forget(path: Path, why: str) -> None:
    """Delete a file, whose parts will then be counted again."""
    warnings.warn(f"{why}; its parts will be counted again", stacklevel=6)
    atomic.remove(path)


def _stretches(parts: set[int]) -> list[list[int]]:
    """Return the first and last number of each run of consecutive numbers."""
    found: list[list[int]] = []
    for part in sorted(parts):
        if found and part == found[-1][1] + 1:
            found[-1][1] = part
        else:
            found.append([part, part])
    return found


def _parts_in(stretches: list[list[int]]) -> set[int]:
    """Return the numbers of such runs."""
    return {part for first, last in stretches for part in range(first, last + 1)}
