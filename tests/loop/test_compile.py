"""The loop under torch.compile: one graph, eager values, no recompilation for new inputs."""

import dataclasses
import math

import pytest
import torch

import gms_fast
from gms_fast import NoiseMoments, StepCoefficients, solvers, statistics
from gms_fast.schedules import Flow, VPContinuousCosine, VPCosine, VPLinear

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_compiler")

GAUSSIAN = statistics.gaussian(torch.linspace(-1, 1, 40 * 16).reshape(40, 1, 4, 4) ** 3, rank=3)
TABLE = solvers.GGDMTable.of(solvers.UniP(), VPLinear(), VPLinear().timesteps(10, 0.7)[:-1])
SOLVERS = {
    "gms": "gms",
    "free, element": solvers.GMS(fit="free", component="element"),
    "sn-ddpm": "sn-ddpm",
    "ddpm": "ddpm",
    "ddim": "ddim",
    "ddim, eta 0.5": solvers.DDIM(eta=0.5),
    "ddim, own noise": solvers.DDIM(clipped_noise=False),
    "euler, churn": solvers.Euler(churn=3),
    "heun, churn": solvers.Heun(churn=3),
    "dpm-solver++": "dpm-solver++",
    "er-sde": "er-sde",
    "unip": "unip",
    "unipc": "unipc",
    "heun": "heun",
    "ggdm": solvers.GGDM(TABLE),
    "gms with covariance": solvers.GMS(covariance=GAUSSIAN, switch=3),
    "gms with covariance, by itself": solvers.GMS(covariance=GAUSSIAN),
    "teleport, by itself": solvers.Teleport(GAUSSIAN, then=solvers.ERSDE()),
    "teleport": solvers.Teleport(GAUSSIAN, 5.0, solvers.DPMSolverPP()),
    "teleport, direct": solvers.Teleport(GAUSSIAN, skip=0.2, then=solvers.ERSDE(), direct=True),
}
SLOPE = 0.9


class MomentNet(torch.nn.Module):
    """Network with all three moments of images."""

    sample_shape, schedule, moments = (1, 4, 4), VPLinear(), "central"

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(SLOPE))

    def forward(self, x, t):
        level = (t / 1000).reshape(-1, 1, 1, 1) + 0 * x
        return NoiseMoments(self.slope * x, 0.2 + 0.1 * level, 0.05 + 0.1 * level)


class VelocityNet(torch.nn.Module):
    """Network with one tensor, for vectors."""

    sample_shape, schedule, prediction = (6,), VPCosine(), "v"

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(7, 6)

    def forward(self, x, t):
        return self.layer(torch.cat([x, t[:, None] / 1000], 1))


@pytest.fixture
def fresh_compiler():
    yield
    torch.compiler.reset()


def states(shape, n=4, count=2):
    return [gms_fast.ops.philox_normal((n, *shape), seed=seed) for seed in range(count)]


def assert_compiles_once(function, first, second, backend="aot_eager"):
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    assert torch.equal(compiled(first), function(first))
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(compiled(second), function(second))
    assert not torch.equal(function(first), function(second))


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_loop_from_a_given_state(solver):
    net = MomentNet()
    assert_compiles_once(lambda x_T: gms_fast.sample(net, x_T=x_T, solver=solver), *states(net.sample_shape))


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_loop_from_a_tensor_of_seeds(solver):
    """The tensor has one seed per sample, or one for all."""
    net = MomentNet()
    for seeds in (torch.tensor([3, -1, 5, 0]), torch.tensor(3)):
        assert_compiles_once(lambda s: gms_fast.sample(net, n=4, seed=s, solver=solver), seeds, seeds + 7)


def test_loop_with_a_table_that_was_learned_for_a_network():
    """The eager loop checks the table's fingerprint; a graph cannot."""
    net, other = MomentNet(), MomentNet()
    other.slope.data.mul_(2)
    solver = solvers.GGDM(dataclasses.replace(TABLE, network=statistics.fingerprint(net)))
    assert_compiles_once(lambda x_T: gms_fast.sample(net, x_T=x_T, solver=solver), *states(net.sample_shape))
    with pytest.raises(ValueError, match="network"):
        gms_fast.sample(other, n=2, solver=solver)


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_loop_around_one_tensor(solver):
    net = VelocityNet()
    assert_compiles_once(lambda x_T: gms_fast.sample(net, x_T=x_T, solver=solver), *states(net.sample_shape))
    compiled = torch.compile(lambda: gms_fast.sample(net, n=4, seed=3, solver=solver), fullgraph=True, backend="eager")
    assert torch.equal(compiled(), gms_fast.sample(net, n=4, seed=3, solver=solver))


def test_sample_itself_compiles_and_follows_its_arguments():
    """Other numbers make another graph with the eager values."""
    net, compiled = MomentNet(), torch.compile(gms_fast.sample, fullgraph=True, backend="eager")
    for options in ({"steps": 3}, {"steps": 4}, {"n": 2}, {"n": 3}, {"seed": 1}, {"seed": [1, 1 << 63]}):
        options = {"steps": 2, "n": 2} | options
        assert torch.equal(compiled(net, **options), gms_fast.sample(net, **options))


def test_plans_of_one_graph_are_kept_apart():
    net, other = MomentNet(), VPCosine(T=500)

    def many(x):
        for options in ({"steps": 3}, {"schedule": other}, {"schedule": "cosine"}, {"timesteps": [900, 300.0, 0]}):
            x = gms_fast.sample(net, **{"steps": 2} | options, x_T=x, solver="ddpm", clip=(-9.0, 9.0))
        return x  # a narrower clip would remove all influence of the initial state

    assert_compiles_once(many, *states(net.sample_shape), backend="eager")


def test_schedule_given_as_an_argument_is_followed():
    net, x = MomentNet(), states((1, 4, 4))[0]
    compiled = torch.compile(lambda s: gms_fast.sample(net, 2, x_T=x, schedule=s), fullgraph=True, backend="eager")
    for schedule in (VPLinear(), VPCosine(), VPLinear(T=500)):
        assert torch.equal(compiled(schedule), gms_fast.sample(net, 2, x_T=x, schedule=schedule))


def test_solver_given_as_an_argument_is_followed():
    net, x = MomentNet(), states((1, 4, 4))[0]
    compiled = torch.compile(lambda s: gms_fast.sample(net, 3, x_T=x, solver=s), fullgraph=True, backend="eager")
    for solver in (solvers.DDIM(eta=0.5), solvers.DDIM(eta=0.7), solvers.DDIM(eta=0.9), solvers.GMS(weight=0.3)):
        assert torch.equal(compiled(solver), gms_fast.sample(net, 3, x_T=x, solver=solver))


@pytest.mark.parametrize(
    "make",
    [
        lambda: solvers.DDIM(eta=0.5),
        lambda: solvers.DPMSolverPP(order=1),
        lambda: solvers.ERSDE(noise_scale="sde"),
        lambda: solvers.Teleport(GAUSSIAN, 5.0, solvers.DDIM(eta=0.5)),
    ],
)
def test_solver_made_in_the_graph_keeps_its_numbers(make):
    net = MomentNet()
    assert_compiles_once(lambda x_T: gms_fast.sample(net, 3, x_T=x_T, solver=make()), *states(net.sample_shape))


@pytest.mark.parametrize("text", ["er-sde:order=2", "gms:weight=0.3", "dpm-solver++:sde=true"])
def test_solver_may_be_text_with_options(text):
    net = MomentNet()
    assert_compiles_once(lambda x_T: gms_fast.sample(net, 3, x_T=x_T, solver=text), *states(net.sample_shape))


def test_schedule_without_numbers_may_be_made_in_the_graph():
    net = MomentNet()

    def draw(make):
        return lambda x_T: gms_fast.sample(net, 3, x_T=x_T, solver="ddim", schedule=make())

    x, own = states((1, 4, 4))[0], torch.compile(draw(VPContinuousCosine), fullgraph=True, backend="eager")
    assert torch.equal(own(x), draw(VPContinuousCosine)(x))
    with pytest.raises(RuntimeError, match="Flow must be made outside of the compiled function"):
        torch.compile(draw(lambda: Flow(t_max=0.9)), fullgraph=True, backend="eager")(x)


def test_given_noise_and_callback_are_part_of_the_graph():
    net, z, seen = MomentNet(), states((4, 1, 4, 4), n=3, count=1)[0], []

    def draw(x_T, z):
        return gms_fast.sample(net, 3, x_T=x_T, noise=lambda i: z[i], callback=lambda i, t, x, x_0: seen.append(x_0))

    x_T = states(net.sample_shape)[0]
    want = draw(x_T, z)
    got = torch.compile(draw, fullgraph=True, backend="aot_eager")(x_T, z)
    assert torch.equal(got, want)
    assert torch.equal(torch.stack(seen[3:]), torch.stack(seen[:3]))


def test_nan_goes_through_a_compiled_loop():
    """NaN passes into the sample that contains it."""
    net, x_T = MomentNet(), states((1, 4, 4))[0]
    x_T[1] = math.nan
    compiled = torch.compile(lambda x: gms_fast.sample(net, x_T=x), fullgraph=True, backend="aot_eager")
    assert compiled(x_T).isnan().flatten(1).all(1).tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match="x_T must be finite"):
        gms_fast.sample(net, x_T=x_T)


def test_inductor_agrees_to_rounding():
    """The compiler may fuse the network and the code between ops, which changes rounding.

    The ops are the same. With e1 = SLOPE x and other moments without x, a step multiplies an error in x_t by
    A + B |1 - sigma SLOPE|/alpha at most; clipping lengthens nothing. It adds the rounding of m = (x - sigma e1)/alpha,
    of x_s and of the drawn deviation: 16 operations of error 2^-24 on numbers of at most (1 + B/alpha) max|x_t|.
    """
    net, (x_T, _) = MomentNet(), states((1, 4, 4))
    sizes = []
    want = gms_fast.sample(net, x_T=x_T, callback=lambda i, t, x, x_0: sizes.append(float(x.abs().max())))
    got = torch.compile(lambda: gms_fast.sample(net, x_T=x_T), fullgraph=True)()

    times, error = net.schedule.timesteps(10), 0.0
    for t, s, size in zip(times, times[1:], sizes, strict=False):
        k = StepCoefficients.between(net.schedule, t, s)
        error *= k.A + k.B * abs(1 - k.sigma_t * SLOPE) / k.alpha_t
        error += 16 * 2.0**-24 * size * (1 + k.B / k.alpha_t)
    assert error < 1e-3
    assert (got - want).abs().max() <= error
