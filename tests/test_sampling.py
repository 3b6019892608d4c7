"""The sampling loop: recorded runs, exactness on Gaussian data, equivalences, determinism."""

import functools

import numpy as np
import pytest
import torch
from released_runs import DOUBLE, MIXTURE, run
from toys import Model, polynomial

import gms_fast
from gms_fast import NoiseMoments, schedules, solvers
from gms_fast.models import MomentUNet
from gms_fast.ops import native
from gms_fast.plan import COUNTED
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")

COMPILED = pytest.mark.skipif(not native.available, reason="plain torch rounds a tensor's tail differently")
# The third cumulant of eps sums terms below 64 that cancel but for rounding; the exact fit takes its cube root.
CUBE_ROOT_OF_ROUNDING = (64 * 8 * 2.0**-52) ** (1 / 3)
ALL = {
    "gms": solvers.GMS(),
    "exact, sample": solvers.GMS(fit="exact", component="sample"),
    "free, element": solvers.GMS(fit="free", component="element"),
    "ddpm": solvers.DDPM(),
    "sn-ddpm": solvers.SNDDPM(),
    "ddim": solvers.DDIM(),
    "ddim, eta 0.5": solvers.DDIM(eta=0.5),
}


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
@pytest.mark.parametrize("as_attribute", [True, False])
def test_every_prediction_of_one_model_gives_the_same_samples(solver, as_attribute):
    schedule = VPLinear()

    def converted(form):
        def model(x, t):
            alpha, sigma = float(schedule.alpha(float(t[0]))), float(schedule.sigma(float(t[0])))
            e = MIXTURE(x, t).e1
            x_0 = (x - sigma * e) / alpha
            return {"noise": e, "x0": x_0, "v": alpha * e - sigma * x_0}[form]

        return model

    want = run(solver)
    for form in ("noise", "x0", "v"):
        given = {"prediction": form} if as_attribute else {}
        options = {} if as_attribute else {"prediction": form}
        got = run(solver, Model(converted(form), **given), **options)
        assert (got - want).abs().max() < 1e-9
    assert (run(solver, Model(converted("x0"))) - want).abs().max() > 1e-2


def test_central_and_raw_moments_give_the_same_samples():
    def central(x, t):
        e1, e2, e3 = MIXTURE(x, t)
        return NoiseMoments(e1, e2 - e1**2, e3 - 3 * e1 * e2 + 2 * e1**3)

    for solver in ("gms", "sn-ddpm"):
        a, b = run(solver), run(solver, Model(central, moments="central"))
        assert (a - b).abs().max() < CUBE_ROOT_OF_ROUNDING
    assert (run("gms", Model(central)) - run("gms")).abs().max() > 1e-2


@pytest.mark.parametrize("solver", ALL.values(), ids=ALL)
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=COMPILED), torch.float64, torch.bfloat16])
def test_sample_is_the_same_in_any_batch_split(solver, dtype):
    """Bits agree in the compiled kernels.

    Plain torch, which computes float64, rounds the tail of a tensor differently.
    """
    split = CUBE_ROOT_OF_ROUNDING if dtype == torch.float64 else 0.0
    model = Model(polynomial)
    draw = functools.partial(gms_fast.sample, model, 5, solver=solver, dtype=dtype, clip=(-9.0, 9.0))
    whole = draw(n=12, seed=3)
    assert whole.dtype == dtype
    assert torch.isfinite(whole).all()
    for size in (1, 5):
        parts = [draw(n=min(size, 12 - i), seed=3, sample_offset=i) for i in range(0, 12, size)]
        assert (torch.cat(parts) - whole).abs().max() <= split
    assert torch.equal(draw(n=12, seed=3), whole)
    assert not torch.equal(draw(n=12, seed=4), whole)


@pytest.mark.parametrize("solver", ALL.values(), ids=ALL)
def test_per_sample_seeds_stand_for_samples_of_their_own(solver):
    draw = functools.partial(gms_fast.sample, Model(polynomial), 5, solver=solver, clip=(-9.0, 9.0))
    seeds = [5, (1 << 64) - 1, 7]
    batch = draw(n=3, seed=seeds)
    for i, seed in enumerate(seeds):
        assert torch.equal(batch[i : i + 1], draw(n=1, seed=seed))
    assert torch.equal(draw(n=3, seed=torch.tensor([7, -1, 5])), batch.flip(0))
    assert torch.equal(draw(n=3, seed=torch.tensor(7)), draw(n=3, seed=7))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = MomentUNet(
        image_size=8, in_channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=()
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        model.out2[3].bias.fill_(1.0)
    return model.eval()


@pytest.mark.parametrize("solver", ["gms", "sn-ddpm", "ddim"])
def test_network_samples_do_not_depend_on_the_batch(solver, network):
    """Agreement is to 1e-4, because convolutions of other batches sum in another order."""
    whole = gms_fast.sample(network, 4, solver=solver, n=4)
    assert whole.shape == (4, 1, 8, 8)
    assert not whole.requires_grad
    parts = [gms_fast.sample(network, 4, solver=solver, n=2, sample_offset=i) for i in (0, 2)]
    assert (torch.cat(parts) - whole).abs().max() < 1e-4


def test_network_of_another_precision_keeps_a_float32_state(network):
    want = gms_fast.sample(network, 4, n=2)
    got = gms_fast.sample(copy_of(network).bfloat16(), 4, n=2)
    assert got.dtype == torch.float32
    assert 0 < (got - want).abs().mean() < 0.1


def copy_of(network):
    other = MomentUNet(**network.config)
    other.load_state_dict(network.state_dict())
    return other.eval()


@pytest.mark.parametrize("solver", ALL.values(), ids=ALL)
def test_given_noise_replaces_the_counters(solver):
    """Passing the generator's own draws as `noise` changes nothing."""
    seen = []

    def noise(step, both=True):
        seen.append(step)
        z = gms_fast.ops.philox_normal((3, 4), seed=2, step=COUNTED + step)
        each = isinstance(solver, solvers.GMS) and solver.component != "sample" and solver.fit != "adan"
        shape = (3, 4) if each else (3, 1)
        u = gms_fast.ops.philox_uniform(shape, seed=2, step=COUNTED + step, stream=1)
        return (z, u if both and shape == (3, 4) else u.flatten()) if both else z

    draw = functools.partial(gms_fast.sample, Model(polynomial), 5, solver=solver, n=3, seed=2, clip=(-9.0, 9.0))
    assert torch.equal(draw(noise=noise), draw())
    assert torch.equal(draw(noise=functools.partial(noise, both=False)), draw())
    assert set(seen) <= set(range(5))


def test_given_x_t_is_the_start():
    x_T = gms_fast.ops.philox_normal((8, 4), seed=7, stream=2, **DOUBLE) * float(VPLinear().sigma(999))
    before = x_T.clone()
    assert torch.equal(run("gms", x_T=x_T, seed=7), run("gms", seed=7))
    assert torch.equal(x_T, before)
    assert run("gms", x_T=x_T[:3].float(), dtype=None).dtype == torch.float32
    assert len(run("gms", x_T=x_T[:3])) == 3


def test_callback_sees_every_step():
    seen, inputs = [], []

    def model(x, t):
        inputs.append((x.clone(), t.clone()))
        return MIXTURE(x, t)

    x = gms_fast.sample(Model(model), 5, solver="sn-ddpm", n=2, callback=lambda *a: seen.append(a), **DOUBLE)
    assert [(i, t) for i, t, _, _ in seen] == list(enumerate([999, 799, 599, 399, 199]))
    assert [t.tolist() for _, t in inputs] == [[t, t] for t in (999, 799, 599, 399, 199, 0)]
    for (_, t, x_t, x_0), (given, _) in zip(seen, inputs, strict=False):
        assert torch.equal(x_t, given)
        alpha, sigma = (float(f(t)) for f in (VPLinear().alpha, VPLinear().sigma))
        e1 = MIXTURE(x_t, torch.full((2,), float(t))).e1
        torch.testing.assert_close(x_0, ((x_t - sigma * e1) / alpha).clamp(-1, 1), rtol=0, atol=1e-13)
    assert x.shape == (2, 4)


def test_progress_goes_to_stderr_only_if_wanted(capsys):
    gms_fast.sample(Model(clip=(-1, 1)), 3, solver="ddim", n=1)
    assert capsys.readouterr() == ("", "")
    gms_fast.sample(Model(clip=(-1, 1)), 3, solver="ddim", n=1, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err


def test_timesteps_replace_steps():
    for times in ([999, 665, 332, 0], torch.tensor([999, 665, 332, 0]), np.array([999, 665, 332, 0])):
        assert torch.equal(run("sn-ddpm", timesteps=times), run("sn-ddpm", steps=3))
    model = Model()
    gms_fast.sample(model, timesteps=[700, 300], solver="ddim", n=1)
    assert model.calls == 2


def test_defaults_come_from_the_model():
    schedule = schedules.VPCosine(T=4000)
    times = []
    model = Model(lambda x, t: times.extend(t[:1].tolist()) or 0 * x, schedule=schedule, sample_shape=(2, 3))
    assert gms_fast.sample(model, 2, solver="ddim").shape == (16, 2, 3)
    assert times == [3999, 1999, 0]
    assert gms_fast.sample(model, 2, solver="ddim", n=3, shape=(5,), schedule="linear").shape == (3, 5)
    assert times[3:] == [999, 499, 0]
    assert gms_fast.sample(model, 2, solver="ddim", n=0).shape == (0, 2, 3)


def test_clip_bounds_the_data_estimate():
    far = Model(lambda x, t: -50 + 0 * x)
    assert gms_fast.sample(far, 3, solver="ddim", n=2).eq(1).all()
    assert gms_fast.sample(far, 3, solver="ddim", n=2, clip=(0, 0.5)).eq(0.5).all()
    assert gms_fast.sample(far, 3, solver="ddim", n=2, clip=None).min() > 1
