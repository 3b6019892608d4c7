"""Ops and loop on devices other than CPUs and CUDA, which have no float64."""

from dataclasses import replace

import pytest
import torch
from elsewhere import NAME, Device, Elsewhere
from parity import network_moments, weights_by_element

import gms_fast
from gms_fast import ops, solvers, statistics
from gms_fast.cli import options
from gms_fast.measure import empirical
from gms_fast.schedules import VPLinear

STEP = gms_fast.StepCoefficients.between(VPLinear(), 400, 300)
SHAPE = (3, 2, 5, 5)


@pytest.fixture(autouse=True)
def _device():
    with Device():
        yield


def there(value):
    return value.to(NAME) if isinstance(value, torch.Tensor) else value


def same(call, *inputs):
    """Check the bits of the torch path on the CPU, which has the same operators."""
    got = call(*map(there, inputs))
    gms_fast.set_backend("torch")
    want = call(*inputs)
    gms_fast.set_backend(None)
    for g, w in zip(*([v] if isinstance(v, torch.Tensor) else v for v in (got, want)), strict=True):
        assert isinstance(g, Elsewhere)
        assert torch.equal(g.cpu(), w)


def test_the_device_is_strict():
    x = torch.rand(2, 3)
    for wide in (lambda: there(x.double()), lambda: there(x).double(), lambda: there(x).to("cpu", torch.float64)):
        with pytest.raises(RuntimeError, match=r"no torch[.]float64 on"):
            wide()
    with pytest.raises(RuntimeError, match=r"tensors of lazy beside .*float64"):
        there(x) * torch.tensor(1.0, dtype=torch.float64)
    assert torch.equal(there(x).cpu(), x)


OPTIONS = {
    "defaults": {},
    "free": {"fit": "free", "component": "element"},
    "adan": {"fit": "adan", "iterations": 3, "weight": 0.3},
    "gaussian": {"fit": "gaussian", "clip": None},
    "released": {"moments": "released", "seed": -3, "step_index": 7, "sample_offset": 1 << 40},
    "seeds": {"seed": [3, 4, 1 << 63]},
}


@pytest.mark.parametrize("choices", OPTIONS.values(), ids=OPTIONS)
def test_gms_step(choices):
    same(lambda *t: ops.gms_step(*t, STEP, **choices), *network_moments(SHAPE, 400))


def test_gms_step_reads_numbers_and_draws_from_the_device():
    inputs = network_moments(SHAPE, 400)
    z, u = torch.randn(SHAPE), torch.rand(3)
    same(lambda *t: ops.gms_step(*t[:4], STEP, noise=(t[4], t[5])), *inputs, z, u)
    same(lambda *t: ops.gms_step(*t[:4], t[4], seed=t[5], step_index=t[6]), *inputs, STEP.as_tensor(), *torch.arange(2))
    same(lambda *t: ops.gms_step(*t, None, None, STEP, fit="gaussian"), *inputs[:2])


def test_gms_step_writes_to_out_and_over_an_input():
    x, *moments = map(there, network_moments(SHAPE, 400))
    want = ops.gms_step(x, *moments, STEP).cpu()
    out = torch.empty_like(x)
    assert ops.gms_step(x, *moments, STEP, out=out) is out
    assert torch.equal(out.cpu(), want)
    ops.gms_step(x, *moments, STEP, out=x)
    assert torch.equal(x.cpu(), want)


@pytest.mark.parametrize("fit", ["exact", "free", "adan", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fit_and_sample_mixture(fit, dtype):
    mean, var, third = (t.to(dtype) for t in (torch.randn(SHAPE), torch.rand(SHAPE), torch.randn(SHAPE)))
    same(lambda *t: ops.fit_mixture(*t, 0.1, fit=fit), mean, var, third)
    same(lambda *t: ops.sample_mixture(*t, 0.1, fit=fit, seed=3), mean, var, third)


def test_affine_noise():
    x, y, *_ = network_moments(SHAPE, 400)
    same(lambda x, y: ops.affine_noise(x, [y], [0.5, 2.0], 0.3, seed=4), x, y)
    same(lambda x, y, w: ops.affine_noise(x, [y], w), x, y, torch.tensor([0.5, 2.0, 0.3]))
    same(lambda x, y, w: ops.affine_noise(x, [y], w, 0.3, out=torch.empty_like(x)), x, y, weights_by_element(1, x))


@pytest.mark.parametrize("draw", [ops.philox_normal, ops.philox_uniform])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_philox(draw, dtype):
    same(lambda x: draw(x.shape, seed=5, step=2, device=x.device, dtype=dtype), torch.empty(SHAPE))


def test_another_backend_is_refused_by_name():
    x, *moments = map(there, network_moments(SHAPE, 400))
    gms_fast.set_backend("cpp")
    try:
        assert gms_fast.backends()["chosen"]["other"] is None
        for call in (lambda: ops.gms_step(x, *moments, STEP), lambda: ops.philox_normal((2,), seed=0, device=x.device)):
            with pytest.raises(RuntimeError, match="backend 'cpp' is forced, but it does not run on lazy tensors"):
                call()
    finally:
        gms_fast.set_backend(None)
    assert gms_fast.backends()["chosen"]["other"] == "torch"


def test_bad_arguments_are_named_there_too():
    x, *moments = map(there, network_moments(SHAPE, 400))
    with pytest.raises(ValueError, match="e1 must be on x's device: got cpu, want lazy"):
        ops.gms_step(x, moments[0].cpu(), *moments[1:], STEP)
    with pytest.raises(RuntimeError, match="forward only"):
        ops.gms_step(x.requires_grad_(), *moments, STEP)


class Net(torch.nn.Module):
    """Network with moments from sums and products."""

    sample_shape, schedule = (1, 8, 8), VPLinear()

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.9))

    def forward(self, x, t):
        e1 = self.slope * x
        return gms_fast.NoiseMoments(e1, e1 * e1 + 0.3, e1**3 + 0.9 * e1 + 0.2)


GAUSSIAN = statistics.load_gaussian("digits")
LOW_RANK = statistics.gaussian(torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)), rank=6)
TABLE = solvers.GGDMTable.of(solvers.UniP(), VPLinear(), VPLinear().timesteps(4, 0.7)[:-1])
EMPIRICAL = replace(statistics.load("digits"), network=None)
SOLVERS = {
    **{name: name for name in ("gms", "sn-ddpm", "ddpm", "ddim", "dpm-solver++", "er-sde", "unip", "unipc", "heun")},
    "ddim, eta 0.5": solvers.DDIM(eta=0.5),
    "ddim, own noise": solvers.DDIM(clipped_noise=False),
    "euler, churn": solvers.Euler(churn=3),
    "heun, churn": solvers.Heun(churn=3),
    "adan": solvers.GMS(fit="adan", iterations=3),
    "covariance": solvers.GMS(covariance=GAUSSIAN, switch=3),
    "teleport": solvers.Teleport(LOW_RANK, 5.0, solvers.ERSDE()),
    "ggdm": solvers.GGDM(TABLE),
    "dpm-solver-v3": solvers.DPMSolverV3(EMPIRICAL),
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_sample(solver):
    model = Net()
    same(lambda x: gms_fast.sample(model.to(x.device), 4, solver=solver, n=2, seed=3, clip=(-5, 5)), torch.empty(0))


DATA = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def slope_of(noise, inputs, directions):
    """Return the value and the derivatives of `Net`, which is linear in x and ignores time."""
    x, t = inputs
    return noise(x, t), [noise(dx, t) for dx, _ in directions]


def test_statistics_are_measured_there(monkeypatch):
    """Evaluations are float32 on the device; results are float64 on the CPU.

    The simulated device has everything except derivatives.
    """
    monkeypatch.setattr(empirical, "derivative_for", lambda *_: slope_of)
    kept = {"N": 4, "samples": 6, "batch_size": 4, "t_max": 900, "t_min": 100}
    want, got = (statistics.empirical_model(Net().to(d), DATA, **kept) for d in ("cpu", NAME))
    assert got.l.device.type == "cpu"
    # A mean of sigma (J v) v, J = 0.9, from equal draws: only the rounding may differ.
    torch.testing.assert_close(got.l, want.l, rtol=0, atol=8 * 2**-23)
    assert want.l.abs().max() > 0.5


def test_a_gaussian_is_made_of_data_there():
    for rank in (None, 3):
        got, want = statistics.gaussian(there(DATA), rank=rank), statistics.gaussian(DATA, rank=rank)
        assert torch.equal(got.mean, want.mean)
        assert torch.equal(got.eigenvalues, want.eigenvalues)
    moved = statistics.Gaussian(*map(there, (got.mean.float(), got.eigenvectors.float(), got.eigenvalues.float())))
    assert moved.mean.device.type == "cpu"
    found = statistics.pilot(Net().to(NAME), there(DATA), got, levels=3)
    assert found.r2 == pytest.approx(statistics.pilot(Net(), DATA, want, levels=3).r2, rel=1e-5)


@pytest.mark.parametrize("op", [schema.partition("(")[0] for schema in ops.library.SCHEMAS])
@pytest.mark.parametrize("key", ["CPU", "CUDA", "MPS", "XPU", "HPU", "MTIA", "XLA", "PrivateUse1", "Lazy"])
def test_every_op_has_a_kernel_for_every_device(op, key):
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"gms_fast::{op}", key)
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"gms_fast::{op}", "Autograd")  # torch's own: no gradient


def test_the_command_line_takes_any_device_that_is_there():
    assert options.device(NAME).type == NAME
