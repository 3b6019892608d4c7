"""Image files, and batches of images as one picture."""

import io
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gms_fast.storage import atomic

PADDING = 2
SMALL = 64  # images up to this side are shown enlarged


def grid(x: Tensor, columns: int | None = None, scale: int | None = None) -> Image.Image:
    """Arrange images x (N, C, H, W), C = 1 or 3, row by row on white; x is clipped to [-1, 1].

    columns: number of columns; default: about as many as rows.
    scale: enlargement by repeated pixels; default: 2 for images up to 64 pixels, else 1.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3) or len(x) == 0:
        raise ValueError(f"x must be (N, 1, H, W) or (N, 3, H, W) with N >= 1 to be shown: got {tuple(x.shape)}")
    n, channels, height, width = x.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    scale = (2 if max(height, width) <= SMALL else 1) if scale is None else scale
    if columns < 1 or scale < 1:
        raise ValueError(f"columns and scale must be at least 1: got {columns} and {scale}")
    pixels = as_bytes(x)
    rows, columns = math.ceil(n / columns), min(columns, n)
    canvas = torch.full(
        (channels, rows * (height + PADDING) + PADDING, columns * (width + PADDING) + PADDING), 255, dtype=torch.uint8
    )
    for i, image in enumerate(pixels):
        top = PADDING + i // columns * (height + PADDING)
        left = PADDING + i % columns * (width + PADDING)
        canvas[:, top : top + height, left : left + width] = image
    return _picture(canvas.repeat_interleave(scale, 1).repeat_interleave(scale, 2))


def save_images(x: Tensor, path: str | Path, columns: int | None = None, scale: int | None = None) -> None:
    """Write `grid(x, columns, scale)` to `path` atomically; its suffix sets the format."""
    _write(grid(x, columns, scale), path)


def save_image(x: Tensor, path: str | Path) -> None:
    """Write one image (C, H, W), C = 1 or 3, pixel for pixel; x is clipped to [-1, 1].

    The file is written as by `save_images`.
    """
    if x.ndim != 3 or x.shape[0] not in (1, 3):
        raise ValueError(f"x must be (1, H, W) or (3, H, W): got {tuple(x.shape)}")
    _write(_picture(as_bytes(x)), path)


def encoded(pixels: Tensor, suffix: str) -> memoryview:
    """Return the file content of one image (C, H, W), uint8 on the CPU, in a suffix's format."""
    return _encoded(_picture(pixels), suffix)


def as_bytes(x: Tensor) -> Tensor:
    """Return `grey_levels` of x on the CPU."""
    return grey_levels(x).cpu()


def grey_levels(x: Tensor) -> Tensor:
    """Return the nearest grey levels 0..255 of x, clipped to [-1, 1], as uint8 on x's device."""
    return ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _picture(pixels: Tensor) -> Image.Image:
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def _write(picture: Image.Image, path: str | Path) -> None:
    suffix = Path(path).suffix.lower()
    if suffix not in Image.registered_extensions():
        raise ValueError(f"path must have the suffix of an image format, such as .png: got {path}")
    atomic.write_bytes(path, _encoded(picture, suffix))


def _encoded(picture: Image.Image, suffix: str) -> memoryview:
    file = io.BytesIO()
    picture.save(file, Image.registered_extensions()[suffix])
    return file.getbuffer()
