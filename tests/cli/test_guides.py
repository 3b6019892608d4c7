"""Masks read from files."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from gms_fast.cli import guides


def test_levels_near_black_and_white_are_so_where_files_or_fitting_blur(tmp_path):
    levels = np.array([[0, 1, 39, 40, 100], [128, 215, 216, 254, 255]], np.uint8)
    for name in ("x.png", "x.webp"):
        Image.fromarray(levels).save(tmp_path / name, lossless=True)
    exact = torch.from_numpy(levels) / 255
    rounded = exact.masked_fill(exact < 40 / 255, 0).masked_fill(exact > 215.5 / 255, 1)
    read = {suffix: guides.mask(tmp_path / f"x.{suffix}", (2, 5), resize=False)[0] for suffix in ("png", "webp")}
    torch.testing.assert_close(read["png"], exact)
    torch.testing.assert_close(read["webp"], rounded)
    torch.testing.assert_close(guides.mask(tmp_path / "x.png", (2, 5), resize=True)[0], rounded)
    assert (rounded == 0).sum() == (rounded == 1).sum() == 3


def test_mask_of_a_jpeg_is_that_of_its_drawing(tmp_path):
    image = Image.new("L", (64, 64))
    ImageDraw.Draw(image).ellipse([12, 20, 45, 52], fill=255)
    for name, more in (("x.png", {}), ("x.jpg", {"quality": 75})):
        image.save(tmp_path / name, **more)
    drawn, blurred = (guides.mask(tmp_path / name, (64, 64), resize=False) for name in ("x.png", "x.jpg"))
    assert torch.equal(drawn, blurred)


@pytest.mark.parametrize(("level", "colour"), [(39, "black"), (216, "white")])
def test_mask_that_is_nearly_of_one_colour_is_refused(tmp_path, level, colour):
    Image.new("L", (8, 8), level).save(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match=rf"x\.jpg is {colour}"):
        guides.mask(tmp_path / "x.jpg", (8, 8), resize=False)
