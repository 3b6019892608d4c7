"""Warnings point at the user's code, whatever lies between."""

import warnings
from pathlib import Path

import pytest
import torch

import gms_fast

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = gms_fast.models.GaussianMixture1D([1.0], [0.0], [0.1], sample_shape=(1, 4, 4))


def image():
    return torch.zeros(1, 1, 4, 4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: gms_fast.sample(MODEL, 5, n=1, solver="er-sde", schedule="cosine"),
        lambda: gms_fast.graphed(MODEL, 5, n=1, solver="er-sde", schedule="cosine"),
        lambda: gms_fast.editing.stroke(MODEL, image(), strength=0.5, steps=5, solver="er-sde", schedule="cosine"),
    ],
)
def test_warnings_name_this_file(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        call()
    said = [w for w in found if "model.schedule has" in str(w.message)]
    assert said
    assert {Path(w.filename).name for w in said} == {Path(__file__).name}
