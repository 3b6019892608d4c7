"""Moments of a step against those of a known posterior."""

import pytest
import torch

from gms_fast.ops import reference


@pytest.mark.parametrize("central", [False, True])
def test_step_moments_are_the_cumulants_of_the_posterior(central):
    """Take x_s = A x + B x_0 + sqrt(c) z for a two-point x_0, with moments of two terms."""
    points, p = torch.tensor([-0.7, 0.4], dtype=torch.float64), torch.tensor([0.3, 0.7], dtype=torch.float64)
    alpha, sigma, A, B, c = 0.8, 0.6, 0.5, 0.3, 0.04
    x = torch.tensor([[0.25]], dtype=torch.float64)
    eps = (x - alpha * points) / sigma
    e1 = (p * eps).sum().view(1, 1)
    centre = e1 if central else 0
    e2, e3 = ((p * (eps - centre) ** k).sum().view(1, 1) for k in (2, 3))
    mean, base, excess, third, m = reference.step_moments(x, e1, e2, e3, (alpha, sigma, A, B, c), central=central)
    m_want = (p * points).sum()
    assert m.item() == pytest.approx(m_want.item(), rel=1e-12)
    assert mean.item() == pytest.approx((A * x + B * m_want).item(), rel=1e-12)
    assert (base + excess).item() == pytest.approx((c + B**2 * (p * (points - m_want) ** 2).sum()).item(), rel=1e-12)
    assert third.item() == pytest.approx((B**3 * (p * (points - m_want) ** 3).sum()).item(), rel=1e-10)
