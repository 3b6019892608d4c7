"""Shards of images: `.npz` files with `images` (n, C, H, W) uint8 and their numbers.

The numbers, `index` (n,), count the images of all shards of a folder from 0.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from gms_fast.storage import arrays
from gms_fast.storage.reading import below, refusing
from gms_fast.storage.schema import short

SUFFIX = ".npz"
_IMAGES, _INDEX = "images", "index"


def files(folder: Path) -> list[Path]:
    """Return the shards of a folder and its subfolders, sorted by name."""
    return sorted(file for file in below(folder) if file.suffix == SUFFIX)


def count(folder: Path) -> int:
    """Return the number of images in the shards of a folder; only their indices are read.

    Raises ValueError for a shard that cannot be read, and unless every number from 0 on occurs once.
    """
    runs = {file: _numbers(file) for file in files(folder)}
    together = np.concatenate(list(runs.values()))
    first, last = together[np.argsort(together[:, 0], kind="stable")].T
    begins = np.concatenate([[0], np.maximum.accumulate(last)[:-1] + 1])  # the number that each run should begin with
    if len(twice := np.flatnonzero(first < begins)):
        number = first[twice[0]]
        places = [file.name for file, run in runs.items() if ((run[:, 0] <= number) & (number <= run[:, 1])).any()]
        raise ValueError(f"folder {folder} must hold every image once: {number} is twice in {', '.join(places[:2])}")
    if len(gaps := np.flatnonzero(first > begins)):
        gone = int((first - begins).sum())
        raise ValueError(f"folder {folder} must hold every image: {gone} are missing, {begins[gaps[0]]} the first")
    return int(last[-1]) + 1


def each(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (images, numbers) of each shard, all images of one shape."""
    first, shape = "", None
    for file in files(folder):
        images, index = read(file)
        if shape is None:
            first, shape = file.name, images.shape[1:]
        if images.shape[1:] != shape:
            raise ValueError(f"shard {file} holds images {images.shape[1:]}, but {first} {shape}: one shape is wanted")
        yield images, index


def read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, C, H, W) uint8 and their numbers (n,) int64 of one shard.

    Raises ValueError naming a file that is no shard.
    """
    with _refusing(file):
        images, index = contents(file)
    return images, index


def contents(file: Path, *more: str) -> tuple[np.ndarray, ...]:
    """Return images and numbers, as `read` does, and the arrays named in `more`.

    Raises ValueError that says what is wrong but does not name the file, and the errors of numpy and zipfile.
    """
    found = _members(file, [_IMAGES, _INDEX, *more])
    index, images = _index(found), found[_IMAGES]
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"its images must be (n, C, H, W) uint8: got {images.dtype} {images.shape}")
    if len(images) != len(index):
        raise ValueError(f"it holds {len(images)} images, but {len(index)} numbers")
    return images, index, *(found[name] for name in more)


def _numbers(file: Path) -> np.ndarray:
    with _refusing(file):
        return _runs(_index(_members(file, [_INDEX])))


def _refusing(file: Path) -> AbstractContextManager[None]:
    return refusing(f"shard {file} cannot be read", file)


def _runs(index: np.ndarray) -> np.ndarray:
    """Return the runs of consecutive numbers, (r, 2): first and last of each.

    The shard of one generation run has a single one.
    """
    numbers = np.sort(index)
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    return np.stack([numbers[np.append(0, breaks + 1)], numbers[np.append(breaks, -1)]], 1)


def _index(found: dict[str, np.ndarray]) -> np.ndarray:
    index = found[_INDEX]
    if index.dtype != np.int64 or index.ndim != 1 or not len(index) or index.min() < 0:
        raise ValueError(f"its index must be (n,) int64, 0 or more: got {short(index)}")
    return index


def _members(file: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Read these arrays of a shard."""

    def choose(inside: list[str]) -> list[str]:
        if missing := [name for name in dict.fromkeys([_IMAGES, _INDEX, *names]) if name not in inside]:
            raise ValueError(f"it holds {short(inside)}, wanted {missing[0]}")
        return names

    found = arrays.read_npz(file, choose)
    if len(found) != len(names):
        raise ValueError("it holds text, wanted numbers")
    return found
