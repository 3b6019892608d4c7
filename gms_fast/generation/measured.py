"""Statistics of a run's pictures by features, counted part by part, each part once, in a file of each process.

A process holds its file by a claim. The file of one that has died is taken over by the next that begins, so that there
are never more files than there were processes at once.
"""

import secrets
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gms_fast.generation.settings import MEASURED, WHOLE
from gms_fast.generation.shards import Cut
from gms_fast.quality.extractors import Extractor
from gms_fast.quality.running import Running
from gms_fast.storage import atomic, schema, tensors
from gms_fast.storage.claims import Claims
from gms_fast.storage.locks import naming
from gms_fast.storage.reading import metadata
from gms_fast.storage.schema import Fields, Integer, Listed, Text

_SUFFIX = ".safetensors"
_AT_A_TIME = 256  # pictures that features are made of
_MOST_PARTS = 1 << 24


class Measured:
    """What is measured of the pictures of the run `run` in `out`, cut into parts."""

    def __init__(self, out: Path, cut: Cut, run: str, features: Extractor) -> None:
        self.out, self.cut, self.run, self.features = out, cut, run, features
        self.own = out / MEASURED / f"{secrets.token_hex(8)}{_SUFFIX}"
        self._running: Running | None = None
        self._seen: dict[Path, tuple[tuple[int, int], frozenset[int]]] = {}  # files as they were: (time, inode), parts

    def begin(self, claims: Claims) -> None:
        """Take over the file of a process that has died, if there is one. Raises ValueError for other features."""
        with naming(self.out):
            self.own.parent.mkdir(exist_ok=True)
        waiting = {name for name in claims.names() if name.endswith(_SUFFIX)}  # some before their first write
        for path in sorted({*self._files(), *(self.own.parent / name for name in waiting)}):
            if not claims.take(path.name):
                continue
            if self._running is None and path.exists() and (running := self._read(path)) is not None:
                self.own, self._running = path, running
            else:
                claims.drop(path.name)
        if self._running is None:
            claims.take(self.own.name)

    def done(self) -> set[int]:
        """The parts that are counted in some file."""
        return set().union(*map(self._parts, self._files()))

    def add(self, part: int, pictures: Tensor, ours: Callable[[], bool]) -> None:
        """Count a part, unless another process has, or has taken it over: `ours` tells."""
        rows = torch.cat([self.features(some) for some in pictures.split(_AT_A_TIME)])
        if part in self.done() or not ours():
            return
        running = self._running or Running(rows.shape[1], self.features.mark, {"run": self.run, "parts": []})
        running.update(rows, torch.tensor(self.cut[part]))
        running.said["parts"].append(part)
        running.save(self.own)
        self._running = running

    def finish(self, parts: set[int]) -> bool:
        """Put all that is counted into the one file `WHOLE`. False where some of these parts are missing: of a broken
        file, which is deleted.

        Raises ValueError naming two files that have counted the same part.
        """
        owners: dict[int, Path] = {}
        whole: Running | None = None
        for path in self._files():
            if (running := self._read(path)) is None:
                continue
            for part in running.said["parts"]:
                if (other := owners.setdefault(part, path)) is not path:
                    raise ValueError(f"{path} and {other} have both counted {self.cut.name(part)}: delete one of them")
            whole = running if whole is None else Running.merged([whole, running])
        if whole is None or not parts <= owners.keys():
            return False
        whole.said = {"run": self.run, "parts": len(owners)}
        whole.save(self.out / WHOLE)
        return True

    def _files(self) -> list[Path]:
        with naming(self.out):
            return sorted(self.own.parent.glob(f"*{_SUFFIX}"))

    def _parts(self, path: Path) -> frozenset[int]:
        """The parts that a file counts, which is looked into only where it has changed; none for a broken one."""
        try:
            seen = path.stat()
            mark = seen.st_mtime_ns, seen.st_ino
            if self._seen.get(path, ((0, 0),))[0] != mark:
                self._seen[path] = (
                    mark,
                    frozenset(metadata(tensors.metadata_of(path), {"said": _SAID})["said"]["parts"]),
                )
        except (FileNotFoundError, ValueError, KeyError):
            return frozenset()
        return self._seen[path][1]

    def _read(self, path: Path) -> Running | None:
        """The statistics in a file; None for a broken one, which is deleted with a warning."""
        try:
            running = Running.load(path)
            schema.check(f"statistics {path}", running.said, _SAID)
        except ValueError as error:
            warnings.warn(f"{error}; what it counted is counted anew", stacklevel=5)
            atomic.remove(path)
            return None
        if running.features != self.features.mark:
            raise ValueError(
                f"features must be those that {path} has counted, {running.features}: got {self.features.mark}"
            )
        if running.said["run"] != self.run:
            raise ValueError(f"{path} is of the run {running.said['run']}, not of {self.run}")
        return running


_SAID = Fields({"run": Text(64), "parts": Listed(Integer(0), _MOST_PARTS)})
