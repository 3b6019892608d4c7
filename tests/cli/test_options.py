"""Values of the command line."""

import argparse

import pytest

from gms_fast.cli import options


def test_numbers_are_finite():
    assert options.finite("-2.5") == -2.5
    for text in ("nan", "inf", "-inf", "many", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=f"must be a finite number: got '{text}'"):
            options.finite(text)


def test_counts_have_a_least_value():
    assert [options.positive("1"), options.several("2")] == [1, 2]
    for take, text, least in ((options.positive, "0", 1), (options.several, "1", 2), (options.several, "x", 2)):
        with pytest.raises(argparse.ArgumentTypeError, match=f"an integer of at least {least}: got '{text}'"):
            take(text)


def test_files_may_have_an_ending_in_capitals_and_are_no_folders(tmp_path):
    options.check_file(tmp_path / "x.PNG", (".png",), overwrite=False)
    (tmp_path / "x.png").mkdir()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"--noise .*x\.png is a folder, but must be a file"):
            options.check_file(tmp_path / "x.png", (".png",), overwrite=overwrite, name="--noise")
    with pytest.raises(ValueError, match=r"--out must end in \.png: got .*x\.gif, which is new"):
        options.check_file(tmp_path / "x.gif", (".png",), overwrite=False, hint=", which is new")
