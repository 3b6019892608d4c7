"""Shards: the pictures of consecutive samples, in files that say of themselves what they are and are checked by it.

A shard is `FIRST-LAST.npz` with `images` (N, C, H, W) uint8, `index` (N,) int64 and `made`, JSON in bytes; or a folder
`FIRST-LAST` of PNGs named by their index, with the same JSON in `made.json`. Sorted by name they are in order.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gms_fast import images
from gms_fast import shards as files
from gms_fast.data import load_image
from gms_fast.storage import atomic, schema
from gms_fast.storage.reading import json_value, read_bytes, refusing
from gms_fast.storage.schema import Fields, Integer, Text

MADE = "made.json"
_DIGITS = 9
_NAME = re.compile(rf"(\d{{{_DIGITS},}}-\d{{{_DIGITS},}})({re.escape(files.SUFFIX)})?")


class OtherRunError(ValueError):
    """A shard of another run."""


@dataclass(frozen=True)
class Cut:
    """The samples 0 .. n - 1 cut into parts of `size`; the last may be smaller."""

    n: int
    size: int

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def __getitem__(self, part: int) -> range:
        return range(part * self.size, min((part + 1) * self.size, self.n))

    def name(self, part: int) -> str:
        """FIRST-LAST, of as many digits as the last sample has, at least nine."""
        indices, digits = self[part], max(_DIGITS, len(str(self.n - 1)))
        return f"{indices[0]:0{digits}d}-{indices[-1]:0{digits}d}"


class Shards:
    """The shards of a run in its folder. `run` is the fingerprint of the run, which each of them says."""

    suffix = ""
    kept = True  # whether pictures are kept at all

    def __init__(self, folder: Path, cut: Cut, shape: tuple[int, ...], run: str) -> None:
        self.folder, self.cut, self.shape, self.run = folder, cut, shape, run
        self._parts = {self.name(part): part for part in range(len(cut))}

    def name(self, part: int) -> str:
        """The name of a shard in the folder."""
        return self.cut.name(part) + self.suffix

    def has(self, part: int) -> bool:
        """Tell whether a shard is there."""
        return (self.folder / self.name(part)).exists()

    def there(self, names: Iterable[str]) -> set[int]:
        """The parts whose shards are among those names, whole or broken."""
        return {self._parts[name] for name in names if name in self._parts}

    def write(self, part: int, pictures: Tensor, **said: Any) -> None:
        """Write a shard as a whole: pictures (N, C, H, W) uint8 on the CPU, and what else is to be said of them."""
        indices = self.cut[part]
        made = {"first": indices[0], "count": len(indices), "sha256": _digest(pictures), "run": self.run, **said}
        self._write(self.folder / self.name(part), indices, pictures, json.dumps(made))

    def read(self, part: int) -> tuple[Tensor, dict[str, Any]]:
        """(pictures, what was said of them). Raises ValueError naming the shard that is broken or of another run."""
        path, indices = self.folder / self.name(part), self.cut[part]
        with refusing(f"shard {path} is broken", path):
            pictures, index, text = self._read(path, indices)
            made = json_value(text)
            schema.check("it", made, _MADE)
            if made["run"] != self.run:
                raise OtherRunError(f"shard {path} is of the run {made['run']}, not of {self.run}")
            if index != list(indices) or (made["first"], made["count"]) != (indices[0], len(indices)):
                raise ValueError(f"it has other samples than {indices[0]} to {indices[-1]}")
            if tuple(pictures.shape) != (len(indices), *self.shape):
                raise ValueError(f"it has pictures {tuple(pictures.shape)}, wanted {len(indices)} of {self.shape}")
            if made["sha256"] != _digest(pictures):
                raise ValueError("its pictures have another checksum than it says")
        return pictures, made

    def remove(self, part: int) -> None:
        """Delete a shard, if it is there. Raises FileExistsError for a folder with files of others."""
        raise NotImplementedError

    def sweep(self, claimed: Callable[[str], bool]) -> None:
        """Remove what killed writers left of shards, but for those whose FIRST-LAST is claimed: they are at work."""
        atomic.sweep(self.folder, lambda name: (found := _NAME.fullmatch(name)) is not None and not claimed(found[1]))

    def _write(self, path: Path, indices: range, pictures: Tensor, made: str) -> None:
        raise NotImplementedError

    def _read(self, path: Path, indices: range) -> tuple[Tensor, list[int], bytes]:
        raise NotImplementedError


class Arrays(Shards):
    """Shards that are `.npz` files."""

    suffix = files.SUFFIX

    def _write(self, path: Path, indices: range, pictures: Tensor, made: str) -> None:
        said = np.frombuffer(made.encode(), np.uint8)
        index = np.arange(indices.start, indices.stop, dtype=np.int64)
        with atomic.writing(path, swept=False) as file:
            np.savez(file, images=pictures.numpy(), index=index, made=said)

    def _read(self, path: Path, indices: range) -> tuple[Tensor, list[int], bytes]:
        pictures, index, made = files.contents(path, "made")
        return torch.from_numpy(pictures), index.tolist(), made.tobytes()

    def remove(self, part: int) -> None:
        atomic.remove(self.folder / self.name(part), swept=False)


class Pictures(Shards):
    """Shards that are folders of PNGs."""

    def _write(self, path: Path, indices: range, pictures: Tensor, made: str) -> None:
        with atomic.writing_folder(path, parents=False, swept=False) as folder:
            drawn = ((self._file(i), images.encoded(x, ".png")) for i, x in zip(indices, pictures, strict=True))
            atomic.write_inside(folder, itertools.chain(drawn, [(MADE, made.encode())]))

    def _read(self, path: Path, indices: range) -> tuple[Tensor, list[int], bytes]:
        if (found := set(os.listdir(path))) != {MADE, *map(self._file, indices)}:
            raise ValueError(f"it has {len(found)} files, wanted {len(indices)} pictures and {MADE}")
        pictures = [load_image(path / self._file(i), self.shape[0]) for i in indices]
        return images.as_bytes(torch.stack(pictures)), list(indices), read_bytes(path / MADE)

    def _file(self, index: int) -> str:
        return f"{index:0{_DIGITS}d}.png"

    def remove(self, part: int) -> None:
        path, ours = self.folder / self.name(part), [MADE, *map(self._file, self.cut[part])]
        with suppress(FileNotFoundError):  # another process is quicker
            if strange := sorted({*atomic.visible(path)}.difference(ours)):
                raise FileExistsError(f"shard {path} holds files of others ({', '.join(strange[:3])}): move them")
            atomic.remove_folder(path)


class Nowhere(Shards):
    """No pictures at all, of a run that is but measured."""

    kept = False

    def has(self, part: int) -> bool:
        return True

    def there(self, names: Iterable[str]) -> set[int]:
        return set(range(len(self.cut)))

    def write(self, part: int, pictures: Tensor, **said: Any) -> None:
        """Nothing is written."""

    def remove(self, part: int) -> None:
        """Nothing is there."""


FORMS: dict[str, type[Shards]] = {"npz": Arrays, "png": Pictures, "none": Nowhere}
_MADE = Fields(
    {"first": Integer(0), "count": Integer(1), "sha256": Text(64), "run": Text(64)},
    {"device": Text(200), "network_rows": Integer(1)},
)


def _digest(pictures: Tensor) -> str:
    return hashlib.sha256(pictures.contiguous().numpy().data).hexdigest()
