"""Bad input that is easy to miss: aliased outputs, missing tensors, numbers out of range.

Each error names its argument.
"""

import pytest
import torch

from gms_fast import StepCoefficients, ops
from gms_fast.schedules import VPLinear

STEP = StepCoefficients.between(VPLinear(), 400, 300)


def moments(size=8):
    torch.manual_seed(0)
    e1, spread = torch.randn(2, size), torch.rand(2, size)
    return torch.randn(2, size), e1, e1**2 + spread, e1**3 + 3 * e1 * spread


def test_out_that_overlaps_an_input_gives_the_same_result():
    x, *rest = moments()
    storage = torch.empty(17)
    for offset in (0, 1):
        inside = storage[:16].view(2, 8)
        inside.copy_(x)
        out = storage[offset : 16 + offset].view(2, 8)
        assert torch.equal(ops.gms_step(inside, *rest, STEP, out=out), ops.gms_step(x, *rest, STEP))


def test_out_that_requires_a_gradient_is_refused():
    with pytest.raises(RuntimeError, match="forward only, but out"):
        ops.gms_step(*moments(), STEP, out=torch.empty(2, 8, requires_grad=True))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_missing_e1_is_refused(device):
    x, _, e2, e3 = (t.to(device) for t in moments())
    with pytest.raises(TypeError, match="e1 must be a tensor"):
        ops.gms_step(x, None, e2, e3, STEP)


def test_tensors_on_another_device_are_refused():
    x, e1, e2, e3 = moments()
    with pytest.raises(ValueError, match="e1 must be on x's device"):
        ops.gms_step(x, e1.to("meta"), e2, e3, STEP)


@pytest.mark.parametrize("position", range(6))
def test_impossible_coefficients_are_refused(position):
    bad = STEP.as_list()
    bad[position] = [0.0, float("inf"), float("inf"), float("nan"), -1.0, -1.0][position]
    with pytest.raises(ValueError, match="coefficients must"):
        torch.ops.gms_fast.gms_step(*moments(), bad)


def test_step_of_another_type_is_refused():
    with pytest.raises(TypeError, match="step must be StepCoefficients, or its tensor: got tuple"):
        ops.gms_step(*moments(), (1, 2, 3))
