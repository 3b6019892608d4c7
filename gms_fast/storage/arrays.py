"""Readers of numpy files, `.npy` and `.npz`, that check all sizes before they allocate."""

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
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # numpy's; others may allocate memory without bound
_LONGEST_HEADER = 1 << 16
_RATIO = 100  # unpacked to packed bytes; black-and-white digits exceed 50


def read_npy(path: Path) -> np.ndarray:
    """Read the array of a `.npy` file.

    Raises ValueError if the file is no `.npy` file or holds anything but numbers.
    """
    with path.open("rb") as file:
        array = _array(file, os.fstat(file.fileno()).st_size)
    if array is None:
        raise ValueError("it holds text, wanted numbers")
    return array


def read_npz(path: Path, choose: Callable[[list[str]], list[str]] = list) -> dict[str, np.ndarray]:
    """Read arrays of a `.npz` file; arrays of text are left out.

    Args:
        path: The file.
        choose: Selects from the names in the file those to read; all by default.

    Raises ValueError that names the array if one is damaged or pickled. Also raises it if the file
    unpacks to more bytes than `most` allows.
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
    """Open a zip file after checking its members' compression, names and unpacked size.

    Only the compressions that numpy and torch use are accepted; `most` bounds the unpacked size.
    """
    archive = zipfile.ZipFile(path)
    try:
        size, wanted = path.stat().st_size, sum(info.file_size for info in archive.infolist())
        if wanted > (allowed := most(size, _RATIO)):
            raise ValueError(f"it unpacks to {wanted} bytes from {size}, wanted at most {allowed}: compress it less")
        if strange := [info.filename for info in archive.infolist() if info.compress_type not in _PACKINGS]:
            raise ValueError(f"{short(strange[0])} uses an unsupported compression method: store or deflate it")
        if len({info.filename for info in archive.infolist()}) < len(archive.infolist()):
            raise ValueError("it holds several members of the same name")
    except BaseException:
        archive.close()
        raise
    return archive


def _array(file: IO[bytes], size: int) -> np.ndarray | None:
    """Read the array in a file or zip member of `size` bytes; None if it holds text."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"its numpy format version is {version}, wanted (1, 0) to (3, 0)")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file, max_header_size=_LONGEST_HEADER)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, wanted numbers")
    if dtype.kind in "US":
        return None
    if dtype.kind not in _KINDS:
        raise ValueError(f"its dtype is {dtype}, wanted numbers")
    count, start = math.prod(shape), file.tell()
    if any(n < 0 for n in shape) or count * dtype.itemsize != size - start:
        raise ValueError(f"it has {size - start} bytes for {shape} of {dtype}, wanted {count * dtype.itemsize}")
    flat = np.empty(count, dtype)
    fill(file, flat.view(np.uint8).data)
    file.read(1)  # reach the end, where zipfile compares the checksum
    return flat.reshape(shape, order="F" if fortran else "C")
