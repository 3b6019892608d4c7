"""A step outside the network is one pass: one op, no other arithmetic, no unread moments."""

import math
from types import SimpleNamespace

import pytest
import torch
from op_inputs import compiled

import gms_fast
from gms_fast import NoiseMoments, solvers, statistics
from gms_fast.guidance import ClassifierFree
from gms_fast.ops import native
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")

LINEAR = VPLinear()
DIGITS = statistics.load_gaussian("digits")
TABLE = solvers.GGDMTable.of(solvers.UniP(), VPLinear(), VPLinear().timesteps(8, 0.7)[:-1])
SOLVERS = {
    **{name: name for name in ("gms", "sn-ddpm", "ddpm", "ddim", "dpm-solver++", "er-sde", "unip", "unipc", "heun")},
    "ddim, eta 0.5": solvers.DDIM(eta=0.5),
    "ddim, own noise": solvers.DDIM(clipped_noise=False),
    "euler, churn": solvers.Euler(churn=3),
    "ggdm": solvers.GGDM(TABLE),
}


class Net:
    """Network with image moments that records which of its methods is called."""

    sample_shape, schedule, clip, moments = (1, 8, 8), VPLinear(), (-1.0, 1.0), "central"

    def __init__(self):
        self.asked = []

    def __call__(self, x, t):
        self.asked.append("all")
        return NoiseMoments(0.9 * x, 0.2 + 0.1 * x * x, 0.05 * x)

    def first_moment(self, x, t):
        self.asked.append("first")
        return 0.9 * x


@compiled
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_every_step_is_one_op_and_touches_no_tensor_beside(solver, monkeypatch):
    calls = []

    def counting(name, op):
        return lambda *arguments: (calls.append(name), op(*arguments))[1]

    ops = {name: getattr(native.compiled, name) for name in dir(native.compiled) if not name.startswith("_")}
    ops |= {n: counting(n, op) for n, op in ops.items() if n.endswith(("gms_step", "linear_step", "philox"))}
    monkeypatch.setattr(native, "compiled", SimpleNamespace(**ops))
    x_T, output = torch.randn(2, 1, 8, 8), NoiseMoments(*torch.rand(3, 2, 1, 8, 8).unbind())

    def network(x, t):
        return output

    def draw():
        return gms_fast.sample(network, steps, solver=solver, schedule=LINEAR, clip=(-1, 1), x_T=x_T)

    steps = 8 if isinstance(solver, solvers.GGDM) else 6
    draw()  # makes the plan
    calls.clear()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        draw()
    last = 0 if solver == "er-sde" or isinstance(solver, solvers.GGDM) else 1
    assert len(calls) == steps * (2 if solver == "heun" else 1) + last
    assert set(calls) <= {"new_gms_step", "new_linear_step"}
    events = [event.name for event in profile.events()]
    assert events.count("aten::empty_like") >= len(calls)
    arithmetic = {
        name for name in events if name in ("aten::add", "aten::mul", "aten::div", "aten::sub", "aten::where")
    }
    assert not arithmetic
    assert events.count("aten::clamp_") == isinstance(solver, solvers.GGDM)  # clips the sample once
    assert events.count("aten::aminmax") == 1  # checks x_T


def test_moments_are_asked_for_where_they_are_read():
    for solver, wanted in (
        ("ddim", ["first"] * 5),
        ("gms", ["all"] * 4 + ["first"]),
        ("sn-ddpm", ["all"] * 4 + ["first"]),
        (solvers.GMS(covariance=DIGITS, switch=0), ["first"] * 5),
        (solvers.Teleport(DIGITS, until=10, then=solvers.GMS()), ["all"] * 4 + ["first"]),
    ):
        net = Net()
        gms_fast.sample(net, 4, solver=solver, n=2)
        assert net.asked == wanted
    net, solver = Net(), solvers.GMS(covariance=DIGITS, switch=3)
    gms_fast.sample(net, 6, solver=solver, n=2)
    together = net.asked[1:].index("all")
    assert 0 < together < 5
    first = ["all"]  # shows whether the model has all moments
    assert net.asked == first + ["first"] * together + ["all"] * (5 - together) + ["first"]


def test_first_moment_is_no_way_around_hooks_wrappers_or_another_forward():
    class Module(torch.nn.Module):
        sample_shape, schedule, clip = (1, 8, 8), VPLinear(), (-1.0, 1.0)

        def __init__(self):
            super().__init__()
            self.asked = []

        def forward(self, x, t):
            self.asked.append("all")
            return 0.9 * x

        def first_moment(self, x, t):
            self.asked.append("first")
            return 0.9 * x

    class Other(Module):
        def forward(self, x, t):
            return super().forward(x, t)

    class Patched(Module):
        first_moment = Module.first_moment

        def forward(self, x, t):
            raise AssertionError

    def forward(self, x, t):
        return Module.forward(self, x, t)

    Patched.forward = forward
    hooked, patched, plain, compiled, of_class = Module(), Module(), Module(), Module(), Patched()
    compiled.compile(backend="eager")
    hooked.register_forward_hook(lambda *_: None)
    patched.forward = patched.forward
    other, wrapped = Other(), Module()
    models = {net: net for net in (hooked, patched, other, compiled, of_class)}
    models[wrapped] = torch.nn.DataParallel(wrapped)
    for net, model in models.items():
        gms_fast.sample(model, 2, solver="ddim", n=1)
        assert set(net.asked) == {"all"}
    gms_fast.sample(plain, 2, solver="ddim", n=1)
    assert set(plain.asked) == {"first"}
    everywhere = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    plain.asked.clear()
    gms_fast.sample(plain, 2, solver="ddim", n=1)
    everywhere.remove()
    assert set(plain.asked) == {"all"}


def test_first_moment_is_not_asked_for_with_a_condition_that_it_may_not_take():
    class OfLabels(Net):
        def __call__(self, x, t, label):
            return super().__call__(x, t)

    net = OfLabels()
    gms_fast.sample(net, 2, solver="ddim", n=1, condition={"label": 3})
    assert set(net.asked) == {"all"}


def test_missing_moments_are_told_of_at_the_first_call():
    calls = []
    solver = solvers.GMS(covariance=DIGITS, switch=0.5)
    with pytest.raises(ValueError, match="model must return NoiseMoments with 3 moments"):
        sampled(lambda x, t: (calls.append(0), x)[1], 20, solver=solver, x_T=torch.ones(1, 1, 8, 8))
    assert len(calls) == 1


class Conditional:
    schedule, sample_shape, clip = VPLinear(), (1, 8, 8), (-1.0, 1.0)

    def __init__(self, moments=None, spoil=None):
        self.moments, self.spoil = moments, spoil

    def __call__(self, x, t, label):
        e1 = 0.8 * x + 0.1 * label.reshape(-1, 1, 1, 1)
        if self.spoil is not None:
            e1 = torch.where((label == self.spoil).reshape(-1, 1, 1, 1) & (t < 500).reshape(-1, 1, 1, 1), math.nan, e1)
        if self.moments is None:
            return e1
        e2, e3 = 0.3 + 0.1 * x * x, 0.05 * x
        return (
            NoiseMoments(e1, e2, e3)
            if self.moments == "central"
            else NoiseMoments(e1, e2 + e1**2, e3 + 3 * e1 * e2 + e1**3)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("solver", "moments"), [("ddim", None), ("dpm-solver++", None), ("ddpm", None), ("gms", "raw"), ("gms", "central")]
)
def test_guidance_in_the_kernel_is_guidance_in_torch(solver, moments, dtype):
    """They agree to a few roundings of the eight steps.

    Where u is within a rounding of w, a mixture may draw the other component.
    """
    network = Conditional(moments)
    guided = ClassifierFree(network, torch.tensor([1.0]), torch.tensor([-0.5]), scale=2.5)
    options = {"solver": solver, "n": 3, "dtype": dtype}
    one = lambda x, t: guided(x, t)  # noqa: E731 - hides that it is guided
    one.schedule, one.sample_shape, one.clip, one.moments = VPLinear(), (1, 8, 8), (-1.0, 1.0), moments or "raw"
    got, want = gms_fast.sample(guided, 8, **options), gms_fast.sample(one, 8, **options)
    near = (got - want).abs() < (1e-4 if dtype == torch.float32 else 1e-12)
    assert near.double().mean() > (0.99 if solver == "gms" else 0.9999)
    batches = gms_fast.sample(guided, 8, **options, batch_size=2)
    torch.testing.assert_close(batches, got, rtol=0, atol=1e-5)


class Halved(ClassifierFree):
    def forward(self, x, t, **condition):
        return 0.5 * super().forward(x, t, **condition)


class Delegate:
    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)

    def __call__(self, x, t):
        return self._model(x, t)


def test_what_stands_around_guidance_sees_one_output():
    given = Conditional(), torch.tensor([1.0]), torch.tensor([-0.5])
    hooked, seen = ClassifierFree(*given, scale=2.5), []
    want = gms_fast.sample(hooked, 3, solver="ddim", n=2)
    hooked.register_forward_hook(lambda _, __, output: seen.append(output.shape))
    for model in (hooked, Delegate(ClassifierFree(*given, scale=2.5)), torch.nn.DataParallel(hooked)):
        torch.testing.assert_close(gms_fast.sample(model, 3, solver="ddim", n=2), want, rtol=0, atol=1e-5)
    assert len(seen) == 8
    halved = gms_fast.sample(Halved(*given, scale=2.5), 3, solver="ddim", n=2)
    assert not torch.allclose(halved, want, atol=1e-3)


def test_a_condition_may_have_any_name():
    class Named(Conditional):
        def __call__(self, x, t, merged):
            return super().__call__(x, t, merged)

    guided = ClassifierFree(Named(), unconditional={"merged": torch.tensor([-0.5])}, scale=2.5)
    gms_fast.sample(guided, 3, solver="ddim", n=2, condition={"merged": torch.ones(2)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_output_of_a_dtype_that_kernels_do_not_read_is_taken_in_that_of_the_state(dtype, monkeypatch):
    monkeypatch.setattr("gms_fast.ops.plain.linear_step", None)
    for solver in ("ddim", "er-sde", "ddpm"):
        want = sampled(lambda x, t: x.to(dtype).float(), solver=solver)
        assert torch.equal(sampled(lambda x, t: x.to(dtype), solver=solver), want)


@pytest.mark.parametrize("label", [1.0, -0.5])
def test_nan_of_either_output_is_named(label):
    guided = ClassifierFree(Conditional(spoil=label), torch.tensor([1.0]), torch.tensor([-0.5]), scale=2.5)
    with pytest.raises(ValueError, match=r"model returned NaN or infinity in e1 at step 3 \(t = 399\)"):
        gms_fast.sample(guided, 5, solver="ddim", n=2)


def sampled(network, steps=4, **options):
    return gms_fast.sample(
        network, steps, schedule=VPLinear(), **{"solver": "ddim", "clip": (-1, 1), "x_T": torch.ones(1, 4)} | options
    )


def test_error_names_the_place_wherever_it_is():
    places = [999, 749, 499, 249, 0]
    for i, t in enumerate(places):
        with pytest.raises(ValueError, match=rf"NaN or infinity in e1 at step {i} \(t = {t}\)"):
            sampled(lambda x, time, t=t: torch.where(time[:, None] == t, math.inf, x))
    with pytest.raises(ValueError, match=r"NaN or infinity in its output at step 0"):
        sampled(lambda x, time: x / 0, prediction="v")
    with pytest.raises(ValueError, match=r"NaN or infinity in e1 at step 0"):
        sampled(lambda x, time: NoiseMoments(x / 0, x, x), prediction="v")
    told = []
    with pytest.raises(ValueError, match=r"NaN or infinity in e1 at step 0"):
        sampled(lambda x, time: x / 0, callback=lambda *given: told.append(given))
    assert not told
    with pytest.raises(ValueError, match=r"state must be finite: step 0 \(t = 999\) produced NaN or infinity"):
        sampled(lambda x, t: torch.full_like(x, -60000.0), clip=None, dtype=torch.float16, solver="er-sde")
    with pytest.raises(ValueError, match="samples must be finite: the last step produced NaN or infinity"):
        sampled(lambda x, t: torch.full_like(x, -2e38), 1, clip=None, solver="er-sde")


class Own(solvers.Solver):
    """Solver of a user, without kernels."""

    def step(self, x, estimate, step, draws, state):
        return x - 0.1 * estimate.moments.e1, state


def test_solver_without_kernels_is_looked_after():
    with pytest.raises(ValueError, match=r"NaN or infinity in e1 at step 2 \(t = 499\)"):
        sampled(lambda x, t: torch.where(t[:, None] == 499, math.nan, x), solver=Own())
    with pytest.raises(ValueError, match="samples must be finite"):
        sampled(lambda x, t: torch.full_like(x, 3e38), solver=Own(), denoise=False, steps=40)
