"""Units of normalised heads, converted in both directions."""

import pytest
import torch

from gms_fast.models.normalised import deviation, moments, unit

LEVELS = [(1.0, 80.0), (1.0, 0.002), (0.3, 0.7), (0.006, 0.99998)]


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
@pytest.mark.parametrize("std", [1.0, 0.5, 7.0])
def test_deviation_in_its_unit_is_that_of_the_noise(alpha, sigma, std):
    """eps - e1 = -(alpha/sigma)(x_0 - m), since x_t is the same."""
    alpha, sigma = torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    m, x_0 = torch.tensor([0.2, -0.9], dtype=torch.float64), torch.tensor([-0.5, 0.9], dtype=torch.float64)
    y = deviation(m, x_0, alpha, sigma, std)
    torch.testing.assert_close(unit(alpha, sigma, std) * y, -(alpha / sigma) * (x_0 - m))


def test_powers_of_the_unit_scale_the_moments():
    found = moments(torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 4.0]), torch.tensor(0.5))
    assert found.e2.tolist() == [0.25, 0.5]
    assert found.e3.tolist() == [-0.375, 0.5]
    assert moments(torch.zeros(1), torch.ones(1), None, torch.ones(1)).e3 is None


def test_narrow_outputs_of_heads_are_scaled_in_float32():
    """The third power of alpha = 0.006 is 2e-7, which float16 cannot represent well."""
    found = moments(torch.zeros(1), torch.ones(1).half(), torch.ones(1).half(), torch.tensor([0.006]))
    assert found.e3.dtype == torch.float32
    assert float(found.e3) == pytest.approx(0.006**3)
