"""Stroke paintings of images, as input for `stroke` (SDEdit, arXiv 2108.01073)."""

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from gms_fast.images import as_bytes
from gms_fast.plan import integer

_SLACK = 1 / 255  # rounding to bytes may take an image this far outside its range


def paint(images: Tensor, *, colours: int = 6, brush: float = 0.1) -> Tensor:
    """Repaint images with a wide brush and few colours, as input for `stroke`.

    Colour images are smoothed by a median filter as wide as the brush, which removes lines thinner than half the brush.

    Greyscale images are treated as drawings, so lines become thicker instead. The median of the image is taken as the
    colour of the paper. If the brightest pixel is farther from this median than the darkest pixel is, the ink is
    lighter than the paper. Each pixel is replaced by a quartile of the pixels under the brush: the upper quartile for
    light ink, the lower one for dark ink.

    The smallest brush is 3 pixels wide, which is a third of a digit in an 8x8 image.

    Args:
        images: Tensor (N, C, H, W), floating point in [-1, 1], C = 1 or 3.
        colours: Number of colours, from 1 to 256. They are chosen for each image by median cut, without dithering.
        brush: Width of the brush, relative to the shorter side of the image, in (0, 1]. It is rounded to an odd number
            of pixels, at least 3.

    Returns:
        Tensor (N, C, H, W) with the dtype and device of `images`. Its values are rounded to the 256 levels of uint8.

    Raises:
        ValueError: If `images` has the wrong shape or range, or if `colours` or `brush` is out of range.
        TypeError: If `images` is not a floating-point tensor, or if `colours` is not an integer.

    Examples:
        >>> images = gms_fast.data.load("digits")[:4]
        >>> guides = gms_fast.editing.paint(images, colours=2, brush=0.3)
        >>> len(guides[0].unique()) <= 2
        True
        >>> model = gms_fast.load("digits")
        >>> gms_fast.editing.stroke(model, guides, steps=5).shape
        torch.Size([4, 1, 8, 8])

    References:
        Meng et al. 2022, arXiv 2108.01073.
    """
    _check(images)
    if not 1 <= integer("colours", colours) <= 256:
        raise ValueError(f"colours must lie in 1 .. 256: got {colours}")
    if not 0 < brush <= 1:
        raise ValueError(f"brush must be a share of the shorter side, in (0, 1]: got {brush}")
    pixels = as_bytes(images).permute(0, 2, 3, 1).numpy()
    width = max(3, 2 * round((brush * min(images.shape[2:]) - 1) / 2) + 1)
    painted = np.stack([_painted(p, colours, width) for p in pixels])
    return (torch.from_numpy(painted).permute(0, 3, 1, 2) / 127.5 - 1).to(images).contiguous()


def _check(images: Tensor) -> None:
    """Check that images are floating point, (N, 1 or 3, H, W), and in [-1, 1]."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating-point tensor (bytes b are b/127.5 - 1): got {got}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(f"images must be (N, 1, H, W) or (N, 3, H, W), not empty: got {tuple(images.shape)}")
    low, high = (float(end) for end in images.aminmax())
    if not (low >= -1 - _SLACK and high <= 1 + _SLACK):  # also catches NaN
        raise ValueError(f"images must lie in [-1, 1]: got {low:g} .. {high:g}")


def _painted(pixels: np.ndarray, colours: int, width: int) -> np.ndarray:
    """Paint one image (H, W, C) of bytes."""
    grey = pixels.shape[2] == 1
    picture = Image.fromarray(pixels[..., 0] if grey else pixels)
    brushed = picture.filter(ImageFilter.RankFilter(width, _rank(pixels, width) if grey else width * width // 2))
    few = brushed.quantize(colours, dither=Image.Dither.NONE).convert(picture.mode)
    return np.asarray(few).reshape(pixels.shape)


def _rank(drawing: np.ndarray, width: int) -> int:
    """Rank, by lightness, of the pixel under the brush that counts."""
    low, paper, high = np.quantile(drawing, (0, 0.5, 1))
    quarter = (width * width - 1) // 4
    return width * width - 1 - quarter if high - paper >= paper - low else quarter
