"""Shards: files of consecutive images that describe themselves and are checked when read.

A shard is a file `FIRST-LAST.npz` with `images` (N, C, H, W) uint8, `index` (N,) int64 and `made`, JSON as bytes. Or it
is a folder `FIRST-LAST` of PNGs named by index, with the same JSON in `made.json`. Sorted by name they are in order.
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
    """Error for a shard that belongs to another run."""


@dataclass(frozen=True)
class Cut:
    """Samples 0 .. n - 1 cut into parts of `size`; the last part may be smaller."""

    n: int
    size: int

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def __getitem__(self, part: int) -> range:
        return range(part * self.size, min((part + 1) * self.size, self.n))

    def name(self, part: int) -> str:
        """Return FIRST-LAST, with at least nine digits, or as many as the last sample has."""
        indices, digits = self[part], max(_DIGITS, len(str(self.n - 1)))
        return f"{indices[0]:0{digits}d}-{indices[-1]:0{digits}d}"


class Shards:
    """Shards of a run in its folder; each holds the run's fingerprint `run`."""

    suffix = ""
    kept = True  # False if no images are stored

    def __init__(self, folder: Path, cut: Cut, shape: tuple[int, ...], run: str) -> None:
        self.folder, self.cut, self.shape, self.run = folder, cut, shape, run
        self._parts = {self.name(part): part for part in range(len(cut))}

    def name(self, part: int) -> str:
        """Return the name of a shard in the folder."""
        return self.cut.name(part) + self.suffix

    def has(self, part: int) -> bool:
        """True if a shard is there."""
        return (self.folder / self.name(part)).exists()

    def there(self, names: Iterable[str]) -> set[int]:
        """Return the parts whose shards, whole or broken, are among these names."""
        return {self._parts[name] for name in names if name in self._parts}

    def write(self, part: int, pictures: Tensor, **said: Any) -> None:
        """Write a shard atomically: images (N, C, H, W) uint8 on the CPU, with further facts."""
        indices = self.cut[part]
        made = {"first": indices[0], "count": len(indices), "sha256": _digest(pictures), "run": self.run, **said}
        self._write(self.folder / self.name(part), indices, pictures, json.dumps(made))

    def read(self, part: int) -> tuple[Tensor, dict[str, Any]]:
        """Return the images of a shard and the facts stored with them.

        Raises ValueError naming a shard that is broken or of another run.
        """
        path, indices = self.folder / self.name(part), self.cut[part]
        with refusing(f"shard {path} is broken", path):
            pictures, index, text = self._read(path, indices)
            made = json_value(text)
            schema.check("", made, _MADE)
            if made["run"] != self.run:
                raise OtherRunError(f"shard {path} belongs to the run {made['run']}, not to {self.run}")
            if index != list(indices) or (made["first"], made["count"]) != (indices[0], len(indices)):
                raise ValueError(f"it must have the samples {indices[0]} to {indices[-1]}: got others")
            if tuple(pictures.shape) != (len(indices), *self.shape):
                raise ValueError(f"it must have {len(indices)} images {self.shape}: got {tuple(pictures.shape)}")
            if made["sha256"] != _digest(pictures):
                raise ValueError("its images do not match their checksum")
        return pictures, made

    def remove(self, part: int) -> None:
        """Delete a shard, if it is there. Raises FileExistsError for a folder with other files."""
        raise NotImplementedError

    def sweep(self, claimed: Callable[[str], bool]) -> None:
        """Delete the temporary files of killed writers, except those whose FIRST-LAST is claimed."""
        atomic.sweep(self.folder, lambda name: (found := _NAME.fullmatch(name)) is not None and not claimed(found[1]))

    def _write(self, path: Path, indices: range, pictures: Tensor, made: str) -> None:
        raise NotImplementedError

    def _read(self, path: Path, indices: range) -> tuple[Tensor, list[int], bytes]:
        raise NotImplementedError


class Arrays(Shards):
    """Shards as `.npz` files."""

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
    """Shards as folders of PNGs."""

    def _write(self, path: Path, indices: range, pictures: Tensor, made: str) -> None:
        with atomic.writing_folder(path, parents=False, swept=False) as folder:
            drawn = ((self._file(i), images.encoded(x, ".png")) for i, x in zip(indices, pictures, strict=True))
            atomic.write_inside(folder, itertools.chain(drawn, [(MADE, made.encode())]))

    def _read(self, path: Path, indices: range) -> tuple[Tensor, list[int], bytes]:
        if (found := set(os.listdir(path))) != {MADE, *map(self._file, indices)}:
            raise ValueError(f"it must have {len(indices)} images and {MADE}: got {len(found)} files")
        pictures = [load_image(path / self._file(i), self.shape[0]) for i in indices]
        return images.as_bytes(torch.stack(pictures)), list(indices), read_bytes(path / MADE)

    def _file(self, index: int) -> str:
        return f"{index:0{_DIGITS}d}.png"

    def remove(self, part: int) -> None:
        path, ours = self.folder / self.name(part), [MADE, *map(self._file, self.cut[part])]
        with suppress(FileNotFoundError):  # another process is quicker
            if strange := sorted({*atomic.visible(path)}.difference(ours)):
                raise FileExistsError(f"shard {path} holds other files ({', '.join(strange[:3])}): move them")
            atomic.remove_folder(path)


class Nowhere(Shards):
    """Shards of a run that is only measured: no images are stored."""

    kept = False

    def has(self, part: int) -> bool:
        return True

    def there(self, names: Iterable[str]) -> set[int]:
        return set(range(len(self.cut)))

    def write(self, part: int, pictures: Tensor, **said: Any) -> None:
        """Do nothing."""

    def remove(self, part: int) -> None:
        """Do nothing."""


FORMS: dict[str, type[Shards]] = {"npz": Arrays, "png": Pictures, "none": Nowhere}
_MADE = Fields(
    {"first": Integer(0), "count": Integer(1), "sha256": Text(64), "run": Text(64)},
    {"device": Text(200), "network_rows": Integer(1)},
)


def _digest(pictures: Tensor) -> str:
    return hashlib.sha256(pictures.contiguous().numpy().data).hexdigest()
