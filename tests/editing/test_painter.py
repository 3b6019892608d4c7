"""The painter: few colours, wide strokes, and no dependence on the image's orientation."""

import numpy as np
import pytest
import torch

from gms_fast import data, editing


def noise(n=3, channels=3, side=32, seed=0):
    """Images with every colour."""
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("colours", [1, 2, 6, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_painted_pictures_have_few_colours_of_the_range(channels, colours, dtype):
    images = noise(channels=channels).to(dtype)
    painted = editing.paint(images, colours=colours)
    assert painted.shape == images.shape
    assert painted.dtype == dtype
    assert painted.is_contiguous()
    assert painted.abs().max() <= 1
    for picture in painted:
        assert len(picture.flatten(1).unique(dim=1).T) <= colours
    assert len(painted[0].flatten(1).unique(dim=1).T) > colours // 2


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mirrored_picture_gives_the_mirrored_strokes(channels):
    images = noise(channels=channels)
    for axis in (2, 3):
        assert torch.equal(editing.paint(images.flip(axis)), editing.paint(images).flip(axis))


def test_each_picture_is_painted_alone():
    images = noise(5)
    assert torch.equal(editing.paint(images)[2:], editing.paint(images[2:]))


def test_areas_wider_than_the_brush_are_left_as_they_are():
    halves = torch.full((1, 3, 32, 32), -1.0)
    halves[..., 16:] = 1
    assert torch.equal(editing.paint(halves), halves)
    assert torch.equal(editing.paint(halves[:, :1, :, 16:]), halves[:, :1, :, 16:])


def test_lines_of_colour_pictures_vanish_where_the_brush_is_wider():
    image = torch.full((1, 3, 30, 30), -1.0)
    image[:, :, 15] = 1
    assert torch.equal(editing.paint(image), torch.full_like(image, -1.0))  # a brush of 3 pixels


@pytest.mark.parametrize("sign", [-1, 1])
def test_lines_of_drawings_grow_whatever_the_paper(sign):
    """On three rows, a one-pixel line covers a third of the brush, more than a quarter."""
    image = torch.full((1, 1, 30, 30), -1.0)
    image[:, :, 15] = 1
    wide = image.clone()
    wide[:, :, 14:17] = 1
    assert torch.equal(editing.paint(sign * image), sign * wide)


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_no_digit_vanishes(name):
    """Expect about as much ink as before, or more, with paper beside it."""
    digits = data.load(name)[::7]
    painted = editing.paint(digits)
    assert ((painted > 0).flatten(1).sum(1) >= 0.8 * (digits > 0).flatten(1).sum(1)).all()
    assert (painted.flatten(1).amax(1) > 0.2).all()
    assert (painted.flatten(1).amin(1) < -0.5).all()


def test_a_wider_brush_makes_fewer_edges():
    image = noise(1)
    edges = [float(editing.paint(image, brush=b, colours=256).diff(dim=3).abs().sum()) for b in (0.1, 0.3, 0.6)]
    assert edges[0] > edges[1] > edges[2]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"images": np.zeros((1, 3, 8, 8))}, TypeError, "images must be a floating-point tensor .*: got ndarray"),
        ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, TypeError, "got torch.uint8"),
        ({"images": torch.zeros(3, 8, 8)}, ValueError, r"images must be \(N, 1, H, W\) .*: got \(3, 8, 8\)"),
        ({"images": torch.zeros(1, 4, 8, 8)}, ValueError, r"got \(1, 4, 8, 8\)"),
        ({"images": torch.zeros(0, 3, 8, 8)}, ValueError, r"got \(0, 3, 8, 8\)"),
        ({"images": torch.full((1, 3, 8, 8), 255.0)}, ValueError, r"images must lie in \[-1, 1\]: got 255 .. 255"),
        ({"images": torch.full((1, 3, 8, 8), torch.nan)}, ValueError, r"images must lie in \[-1, 1\]: got nan .. nan"),
        ({"colours": 0}, ValueError, r"colours must lie in 1 .. 256: got 0"),
        ({"colours": 257}, ValueError, r"colours must lie in 1 .. 256: got 257"),
        ({"colours": 2.5}, TypeError, "colours"),
        ({"brush": 0}, ValueError, r"brush must be a share of the shorter side, in \(0, 1\]: got 0"),
        ({"brush": 23}, ValueError, "brush must be a share .*: got 23"),
    ],
)
def test_bad_arguments_are_named(given, error, message):
    with pytest.raises(error, match=message):
        editing.paint(**{"images": noise(), **given})
