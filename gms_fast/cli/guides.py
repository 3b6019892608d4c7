"""Input images of `gms-fast edit`: their files, tensors and masks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BLACK, WHITE = 40, 215  # grey levels: a blurred mask is black below the first and white above the second
COMPRESSED = (".jpg", ".jpeg", ".webp")  # files that blur black and white, at quality 75 by up to 37 levels
SIZE = "add --resize to fit it (cropped to the aspect ratio, then resampled)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the images, and the option to resize them."""
    add = parser.add_argument
    wanted = "image to edit (a PNG, JPEG, BMP or WebP file), or folder of images"
    add("pictures", type=Path, nargs="+", metavar="IMAGE", help=wanted)
    add("--resize", action="store_true", help="crop and resample images of another size to the size of the model")


def files(paths: list[Path]) -> list[Path]:
    """Return the files of images, those in folders by name; subfolders are skipped."""
    from gms_fast import data

    return [file for path in paths for file in (data.image_files(path, inside=False) if path.is_dir() else [path])]


def shape_of(model: object) -> tuple[int, int, int]:
    """Return (C, H, W) of a model of images."""
    from gms_fast.assumptions import attribute

    shape = attribute(model, "sample_shape")
    if shape is None or len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"--model must draw images of 1 or 3 channels: its samples are {shape}")
    channels, height, width = shape
    return channels, height, width


def read(paths: list[Path], shape: tuple[int, int, int], *, resize: bool) -> Tensor:
    """Read images as (N, *shape), float32 in [-1, 1]."""
    import torch

    from gms_fast import data

    channels, height, width = shape
    rows = []
    for path in paths:
        x = data.load_image(path, channels, size=(height, width) if resize else None)
        if x.shape != shape:
            got = f"{x.shape[2]} x {x.shape[1]}"
            raise ValueError(f"image {path} must have {width} x {height} pixels, like the model: got {got}; {SIZE}")
        rows.append(x)
    return torch.stack(rows)


def mask(path: Path, size: tuple[int, int], *, resize: bool) -> Tensor:
    """Read a mask as (1, H, W) in [0, 1] of a given (H, W); white is 1 and redrawn.

    In compressed and resampled files nearly black is 0 and nearly white is 1.
    """
    from gms_fast.images import as_bytes

    levels = as_bytes(read([path], (1, *size), resize=resize)[0])
    found = levels / 255
    if resize or path.suffix.lower() in COMPRESSED:
        found = found.masked_fill(levels < BLACK, 0).masked_fill(levels > WHITE, 1)
    if found.max() == 0:
        raise ValueError(f"--mask must be white or grey somewhere, where the image is redrawn: {path} is black")
    if found.min() == 1:
        raise ValueError(f"--mask must be black or grey somewhere, where the image is kept: {path} is white")
    return found
