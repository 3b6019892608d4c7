"""Strokes in place of pictures: guides for `stroke`, as SDEdit makes them (Meng et al., arXiv 2108.01073, appendix)."""

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from gms_fast.images import as_bytes
from gms_fast.plan import integer

_SLACK = 1 / 255  # what rounding to bytes may take a picture beyond its range


def paint(images: Tensor, *, colours: int = 6, brush: float = 0.1) -> Tensor:
    """Repaint pictures with a wide brush and few colours.

    images   (N, C, H, W) in [-1, 1], C = 1 or 3
    colours  1 .. 256, chosen for each picture by median cut, without dithering
    brush    width of the brush as a share of the shorter side, in (0, 1]: an odd number of pixels, at least 3

    Colour pictures go through a median filter as wide as the brush, which leaves no line thinner than half of it. Grey
    pictures are taken for drawings, and of a brush's pixels the quartile farther from the paper counts, which makes
    lines thicker instead: the paper is the median of the picture, the ink is lighter if the picture reaches farther up
    from there than down. At 8x8 the 3 pixels are a third of a digit.

    Returns (N, C, H, W) of the same dtype and device, on the 256 levels of bytes. Raises TypeError or ValueError.
    """
    _check(images)
    if not 1 <= integer("colours", colours) <= 256:
        raise ValueError(f"colours must lie in 1 .. 256: got {colours}")
    if not 0 < brush <= 1:
        raise ValueError(f"brush must be a share of the side, in (0, 1]: got {brush}")
    pixels = as_bytes(images).permute(0, 2, 3, 1).numpy()
    width = max(3, 2 * round((brush * min(images.shape[2:]) - 1) / 2) + 1)
    painted = np.stack([_painted(p, colours, width) for p in pixels])
    return (torch.from_numpy(painted).permute(0, 3, 1, 2) / 127.5 - 1).to(images).contiguous()


def _check(images: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating-point tensor (bytes b are b/127.5 - 1): got {got}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(f"images must be (N, 1, H, W) or (N, 3, H, W), none of them 0: got {tuple(images.shape)}")
    low, high = (float(end) for end in images.aminmax())
    if not (low >= -1 - _SLACK and high <= 1 + _SLACK):  # NaN is neither
        raise ValueError(f"images must lie in [-1, 1]: got {low:g} .. {high:g}")


def _painted(pixels: np.ndarray, colours: int, width: int) -> np.ndarray:
    """One picture (H, W, C) of bytes, painted."""
    grey = pixels.shape[2] == 1
    picture = Image.fromarray(pixels[..., 0] if grey else pixels)
    brushed = picture.filter(ImageFilter.RankFilter(width, _rank(pixels, width) if grey else width * width // 2))
    few = brushed.quantize(colours, dither=Image.Dither.NONE).convert(picture.mode)
    return np.asarray(few).reshape(pixels.shape)


def _rank(drawing: np.ndarray, width: int) -> int:
    """The place, among a brush's pixels by lightness, of that which counts."""
    low, paper, high = np.quantile(drawing, (0, 0.5, 1))
    quarter = (width * width - 1) // 4
    return width * width - 1 - quarter if high - paper >= paper - low else quarter
