"""Bad input that is easy to miss: aliased outputs, missing tensors, numbers out of range; each names its argument."""

import pytest
import torch

import gms_fast
from gms_fast import NoiseMoments, StepCoefficients, ops, solvers
from gms_fast.models import GaussianMixture1D
from gms_fast.schedules import VPCosine, VPLinear

STEP = StepCoefficients.between(VPLinear(), 400, 300)
MODEL = GaussianMixture1D([1.0], [0.0], [0.1], sample_shape=(4,))
X = torch.zeros(2, 4)


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


@pytest.mark.parametrize("make", [solvers.GMS, solvers.DDPM, solvers.SNDDPM])
@pytest.mark.parametrize("value", [-1, "a"])
def test_clip_pixel_is_checked(make, value):
    with pytest.raises(ValueError, match="clip_pixel must be None or a number"):
        make(clip_pixel=value)


BAD_CALLS = {
    "x_T holds NaN": ({"x_T": X * float("nan")}, ValueError, "x_T must be finite"),
    "x_T of integers": ({"x_T": X.long()}, TypeError, "x_T must be a floating-point tensor"),
    "x_T a list": ({"x_T": [0.0]}, TypeError, "x_T must be a floating-point tensor"),
    "noise not callable": ({"noise": X}, TypeError, "noise must be callable"),
    "noise of another shape": ({"noise": lambda i: X[:1], "solver": solvers.DDIM(eta=1.0)}, ValueError, "noise z"),
    "callback not callable": ({"callback": 3}, TypeError, "callback must be callable"),
    "offset with x_T": ({"x_T": X, "sample_offset": -1}, ValueError, "sample_offset must lie in"),
    "clip a number": ({"clip": 1.0}, ValueError, "clip must be"),
    "clip a word": ({"clip": "ab"}, ValueError, "clip must be"),
    "timesteps a number": ({"timesteps": 5}, TypeError, "timesteps must be a sequence"),
    "timesteps NaN": ({"timesteps": [float("nan"), 0]}, ValueError, "timesteps must be integers"),
    "solver a list": ({"solver": ["ddim"]}, ValueError, "solver must be"),
    "schedule a number": ({"schedule": 3}, TypeError, "schedule must be"),
    "shape a number": ({"shape": 4}, ValueError, "shape"),
    "shape negative": ({"shape": (2, -1)}, ValueError, "shape"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_sample_names_the_argument(case):
    options, error, message = BAD_CALLS[case]
    with pytest.raises(error, match=message):
        gms_fast.sample(MODEL, 3, **({"n": 2} | options))


def test_model_without_e1_is_refused():
    model = lambda x, t: NoiseMoments(None, x, x)  # noqa: E731
    with pytest.raises(TypeError, match="model must return e1"):
        gms_fast.sample(model, 3, shape=(4,), schedule="linear")


def test_cosine_schedule_refuses_a_fraction_of_steps():
    with pytest.raises(ValueError, match="T must be an integer"):
        VPCosine(T=10.5)
