"""Grids of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from gms_fast import images

pytestmark = pytest.mark.usefixtures("one_thread")


def test_grid_lays_images_out_row_by_row():
    x = torch.stack([torch.full((1, 3, 4), value) for value in (-1.0, 0.0, 1.0, -5.0, 5.0)])
    picture = images.grid(x, columns=3, scale=1)
    assert picture.mode == "L"
    assert picture.size == (3 * 6 + 2, 2 * 5 + 2)
    pixels = np.asarray(picture)
    assert [pixels[2, 2], pixels[2, 8], pixels[2, 14], pixels[7, 2], pixels[7, 8]] == [0, 128, 255, 0, 255]
    assert pixels[0, 0] == pixels[7, 14] == 255


def test_grid_is_square_and_enlarged_by_default():
    assert images.grid(torch.zeros(4, 3, 8, 8)).size == (2 * 22, 2 * 22)
    assert images.grid(torch.zeros(4, 3, 8, 8)).mode == "RGB"
    assert images.grid(torch.zeros(1, 1, 128, 128)).size == (132, 132)
    small, large = (np.asarray(images.grid(torch.rand(1, 1, 8, 8).fill_(0.3), scale=s)) for s in (1, 2))
    assert np.array_equal(small.repeat(2, 0).repeat(2, 1), large)


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (0, 1, 8, 8), (8, 8)])
def test_grid_refuses_what_cannot_be_shown(shape):
    with pytest.raises(ValueError, match=r"x must be \(N, 1, H, W\) or"):
        images.grid(torch.zeros(shape))
    with pytest.raises(ValueError, match="columns and scale must be at least 1: got 0 and 2"):
        images.grid(torch.zeros(1, 1, 8, 8), columns=0)


def test_file_of_an_image_is_that_which_is_saved(tmp_path):
    levels = torch.arange(24, dtype=torch.uint8).reshape(1, 4, 6)
    images.save_image(levels / 127.5 - 1, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == images.encoded(levels, ".png")


def test_an_image_alone_is_written_pixel_for_pixel(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    images.save_image(torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert np.array_equal(np.asarray(picture), pixels)
    with pytest.raises(ValueError, match=r"x must be \(1, H, W\) or \(3, H, W\): got \(2, 4, 4\)"):
        images.save_image(torch.zeros(2, 4, 4), tmp_path / "y.png")
    with pytest.raises(ValueError, match=r"path must have the suffix of an image format"):
        images.save_image(torch.zeros(1, 4, 4), tmp_path / "y.none")
