"""The reference of a whole step."""

import math

import torch

from gms_fast.ops import reference


def test_free_keeps_both_nodes_inside_the_data_range():
    """Check that the two-point law draws x_0 in [lo, hi], even for inconsistent moments."""
    torch.manual_seed(1)
    x, e1 = torch.randn(4, 500).double(), torch.randn(4, 500).double()
    e2, e3 = e1**2 + torch.rand(4, 500).double() * 3, 10 * torch.randn(4, 500).double()
    step = (0.6, 0.8, 0.5, 0.3, 0.04, math.inf)
    options = {"fit": "free", "weight": 1 / 3, "moments": "cumulant", "central": False, "clip": (-1.0, 1.0)}
    rest = {"iterations": 0, "lr": 0.0, "eps": 0.0}
    z = torch.zeros_like(x)
    for u in (torch.zeros_like(x), torch.ones_like(x)):  # component a, component b
        x_s = reference.gms_step(x, e1, e2, e3, step, z, u, **options, **rest)
        x_0 = (x_s - step[2] * x) / step[3]
        assert x_0.abs().max() <= 1 + 1e-9
