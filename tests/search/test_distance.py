"""The kernel distance against the vectors and the quality measures, and its bias."""

import math

import pytest
import torch
from toy_search import VECTORS, double

from gms_fast import search


@pytest.mark.parametrize("kernel", ["linear", "cubic"])
def test_kernel_distance_of_the_vectors(kernel):
    entry = VECTORS["kid"]
    x = double(entry["X"]).requires_grad_()
    distance = search.KernelDistance(double(entry["Y"]), kernel)
    value = distance(x)
    value.backward()
    assert float(value.detach()) == pytest.approx(entry[kernel]["value"], abs=1e-12)
    assert (x.grad - double(entry[kernel]["grad_X"])).abs().max() < 1e-12
    flat = x.detach().flatten()
    for i in range(len(flat)):
        step = torch.zeros_like(flat)
        step[i] = 1e-6
        up, down = (float(distance((flat + sign * step).view_as(x))) for sign in (1, -1))
        assert (up - down) / 2e-6 == pytest.approx(float(x.grad.flatten()[i]), abs=1e-6)


def test_cubic_is_the_kernel_distance_of_the_quality_measures():
    from gms_fast.quality.measures import kernel_distance

    x, y = (torch.randn(80, 5, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (0, 1))
    assert float(search.KernelDistance(y)(x + 0.2)) == pytest.approx(kernel_distance(x + 0.2, y), abs=1e-9)


@pytest.mark.parametrize("kernel", ["linear", "cubic"])
def test_distance_has_no_bias(kernel):
    """For draws of both sides from one distribution its mean is 0 within 4 standard errors."""
    random = torch.Generator().manual_seed(0)
    draws = torch.randn(4000, 2, 6, 3, dtype=torch.float64, generator=random)
    found = double([float(search.KernelDistance(y, kernel)(x)) for x, y in draws])
    assert abs(float(found.mean())) < 4 * float(found.std()) / math.sqrt(len(found))


pytestmark = pytest.mark.usefixtures("one_thread")
