"""Arrays of numpy's files, `.npy` and `.npz`, whose sizes are known before anything is allocated."""

import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from gms_fast.storage.reading import fill, most
from gms_fast.storage.schema import short

_KINDS = "fiubc"  # numbers: no objects, which numpy pickles, and no text
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those of numpy; others may ask for memory of their own
_LONGEST_HEADER = 1 << 16
_RATIO = 100  # of bytes unpacked to packed; digits of zeros and ones go beyond 50


def read_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file. Raises ValueError for what is none, or one of anything but numbers."""
    with path.open("rb") as file:
        array = _array(file, os.fstat(file.fileno()).st_size)
    if array is None:
        raise ValueError("it holds text, wanted numbers")
    return array


def read_npz(path: Path, choose: Callable[[list[str]], list[str]] = list) -> dict[str, np.ndarray]:
    """Those arrays of a `.npz` file that `choose` takes of its names; without arrays of text.

    Raises ValueError naming the array that is damaged or pickled, and for more bytes than `most` allows.
    """
    with members(path) as archive:
        inside = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        found = {}
        for name in choose(list(inside)):
            with archive.open(inside[name]) as file:
                try:
                    array = _array(file, inside[name].file_size)
                except Exception as error:
                    raise ValueError(f"array {short(name)}: {error}") from error
            if array is not None:
                found[name] = array
    return found


def members(path: Path) -> zipfile.ZipFile:
    """A zip file of members that are packed as numpy and torch do, and are no larger than `most` allows."""
    archive = zipfile.ZipFile(path)
    try:
        size, wanted = path.stat().st_size, sum(info.file_size for info in archive.infolist())
        if wanted > (allowed := most(size, _RATIO)):
            raise ValueError(f"it unpacks to {wanted} bytes from {size}, wanted at most {allowed}: pack it less")
        if strange := [info.filename for info in archive.infolist() if info.compress_type not in _PACKINGS]:
            raise ValueError(f"{short(strange[0])} is packed in another way than numpy and torch do")
        if len({info.filename for info in archive.infolist()}) < len(archive.infolist()):
            raise ValueError("it holds several members of one name")
    except BaseException:
        archive.close()
        raise
    return archive


def _array(file: IO[bytes], size: int) -> np.ndarray | None:
    """The array in a file or member of so many bytes; None for text."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"it is of version {version} of numpy's format, wanted 1.0 to 3.0")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file, max_header_size=_LONGEST_HEADER)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, wanted numbers")
    if dtype.kind in "US":
        return None
    if dtype.kind not in _KINDS:
        raise ValueError(f"it is of {dtype}, wanted numbers")
    count, start = math.prod(shape), file.tell()
    if any(n < 0 for n in shape) or count * dtype.itemsize != size - start:
        raise ValueError(f"it has {size - start} bytes for {shape} of {dtype}, wanted {count * dtype.itemsize}")
    flat = np.empty(count, dtype)
    fill(file, flat.view(np.uint8).data)
    file.read(1)  # to the end, where the checksum of a member is compared
    return flat.reshape(shape, order="F" if fortran else "C")
