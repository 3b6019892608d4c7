"""Linear steps from a network's output: against float64, in every form, and with NaN."""

import itertools
import math

import pytest
import torch
from op_inputs import LAYOUTS, compiled, tensors

from gms_fast import ops
from gms_fast import prediction as predictions
from gms_fast.ops import fused
from gms_fast.ops.types import ADDED, COLUMNS, WRITTEN, Draws, Linear, Reading, Watch
from gms_fast.schedules import VPLinear
from gms_fast.solvers import build
from gms_fast.solvers.base import Multistep
from gms_fast.steps import StepCoefficients

ROUNDING = 2.0**-24  # of a float32 operation, relative to its result
LINEAR = (
    "ddim",
    "ddim:eta=0.7",
    "dpm-solver++",
    "dpm-solver++:order=3",
    "dpm-solver++:sde=true",
    "er-sde",
    "unip",
    "unipc:order=4",
    "heun",
)
NOTHING = 2**31 - 1


def inputs(count, shape=(3, 5, 11), dtype=torch.float32):
    return [ops.philox_normal(shape, seed=seed).to(dtype) for seed in range(count)]


def in_float64(x, output, terms, weights, std, *, data, clip=None, unconditional=None, guidance=1.0, z=None):
    """Return x_s, m and the magnitudes in which they are rounded, by the formula."""
    x, y, *terms = (t.double() for t in (x, output, *terms))
    p, q = data
    size = q * y
    if unconditional is not None:
        u = unconditional.double()
        size = q * (u.abs() + abs(guidance) * (y.abs() + u.abs()))
        y = u + guidance * (y - u)
    m, size = p * x + q * y, (p * x).abs() + size.abs()
    m = m if clip is None else m.clamp(*clip)
    x_s = weights[0] * x + weights[1] * m
    sizes = (weights[0] * x).abs() + abs(weights[1]) * size
    for w, t in zip(weights[2:], terms, strict=True):
        x_s, sizes = x_s + w * t, sizes + (w * t).abs()
    if z is not None:
        x_s, sizes = x_s + std * z.double(), sizes + (std * z).abs()
    return x_s, m, sizes, size


@pytest.mark.parametrize("terms", range(9))
@pytest.mark.parametrize("guidance", [None, 1.0, 7.5, -2.0])
@pytest.mark.parametrize("std", [0.0, 0.3])
def test_result_is_the_formula_s_to_rounding(terms, guidance, std):
    """Allow four roundings of the added magnitudes, including those of factors in float32."""
    x, y, u, *history = inputs(3 + terms)
    weights = [0.7, -1.4, *(0.3 * (-1) ** j / (j + 1) for j in range(terms))]
    options = {"data": (1.7, -1.3), "clip": (-0.9, 1.1)}
    if guidance is not None:
        options |= {"unconditional": u, "guidance": guidance}
    z = ops.philox_normal(x.shape, seed=5, step=3)
    want, m, sizes, size = in_float64(x, y, history, weights, std, z=z if std else None, **options)
    got, kept = ops.linear_step(x, y, history, weights, std, seed=5, step_index=3, **options)
    assert ((kept - m).abs() <= 4 * ROUNDING * size).all()
    assert ((got - want).abs() <= (4 + terms) * ROUNDING * sizes).all()


@pytest.mark.parametrize("solver", LINEAR)
@pytest.mark.parametrize("form", ["noise", "x0", "v", "flow", "edm"])
def test_steps_of_linear_solvers_are_four_roundings_from_float64(solver, form):
    """Use every solver's own weights, on every prediction type, with the history of the step."""
    schedule, solver = VPLinear(), build(solver)
    assert isinstance(solver, Multistep)
    times = solver.times(schedule, 8)
    x, y, *history = inputs(6)
    z = ops.philox_normal(x.shape, seed=0, step=1)
    for k, (weights, std) in zip(StepCoefficients.along(schedule, times), solver.plan(schedule, times), strict=True):
        data = predictions.TO_DATA[form](k.alpha_t, k.sigma_t)
        terms = history[: len(weights) - 2]
        want, _, sizes, _ = in_float64(x, y, terms, weights, std, data=data, z=z if std else None)
        got, _ = ops.linear_step(x, y, terms, weights, std, data=data, clip=None, step_index=1)
        assert ((got - want).abs() <= 4 * ROUNDING * sizes).all()


@compiled
def test_numbers_on_the_device_give_the_same_bits():
    x, y, u, h = inputs(4)
    weights, led = [0.7, 0.2, -0.4], {"unconditional": u, "guidance": 3.0, "seed": 4}
    want = ops.linear_step(x, y, [h], weights, 0.1, data=(2.0, -1.0), **led)
    got = ops.linear_step(x, y, [h], torch.tensor([2.0, -1.0, *weights, 0.1]), **led)
    assert all(map(torch.equal, got, want))


@compiled
def test_weights_by_element_that_are_all_alike_are_those_of_all():
    x, y, h = inputs(3)
    weights = [0.7, 0.2, -0.4]
    rows = torch.tensor([*weights, 0.0]).view(4, 1, 1).expand(4, *x.shape[1:]).contiguous()
    options = {"data": (2.0, -1.0), "seed": 4}
    want = ops.linear_step(x, y, [h], weights, 0.1, **options)
    assert all(map(torch.equal, ops.linear_step(x, y, [h], rows, 0.1, **options), want))


def test_several_results_by_element_are_sums_of_their_own():
    x, y, h, g = inputs(4)
    columns = [(0, 1, 2, ADDED), (0, 1), (0, 3)]
    rows = torch.stack(inputs(8, x.shape[1:]))
    step = Linear(
        reading=Reading(1.5, -0.5, -1.0, 1.0),
        weights=(0.0,) * 4 + (0.2,),
        terms=2,
        results=3,
        keeps=True,
        noisy=True,
        present=sum(1 << COLUMNS * i + c for i, own in enumerate(columns) for c in own),
    )
    *got, m = fused.linear_step(x, y, [h, g], step, Draws(seed=9), numbers=rows)
    want_m = (1.5 * x.double() - 0.5 * y.double()).clamp(-1, 1)
    torch.testing.assert_close(m.double(), want_m, rtol=0, atol=4 * ROUNDING * 8)
    a, b, c, d, e, f, i, j = rows.double()
    noise = 0.2 * ops.philox_normal(x.shape, seed=9).double()
    wants = (a * x + b * want_m + c * h + d + noise, e * x + f * want_m, i * x + j * g)
    for result, want in zip(got, wants, strict=True):
        torch.testing.assert_close(result.double(), want, rtol=0, atol=8 * ROUNDING * 32)


@compiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bits_do_not_depend_on_the_layout(layout, dtype):
    x, y, u, h = tensors(4, dtype, layout)
    options = {"data": (1.5, -0.5), "guidance": 2.0, "seed": 1}
    dense = [t.contiguous() for t in (x, y, u, h)]
    want = ops.linear_step(*dense[:2], [dense[3]], [0.5, 0.4, 0.3], 0.1, unconditional=dense[2], **options)
    for given in ((x, y, u, h), (dense[0], y, dense[2], h)):
        got = ops.linear_step(*given[:2], [given[3]], [0.5, 0.4, 0.3], 0.1, unconditional=given[2], **options)
        assert all(map(torch.equal, got, want))


@compiled
def test_part_of_an_output_s_channels_is_read_where_it_lies():
    """Use the output of a network that also learned a variance: 2C channels."""
    x = ops.philox_normal((2, 3, 4, 4), seed=1)
    whole = ops.philox_normal((2, 9, 4, 4), seed=2)
    for part in whole.chunk(3, dim=1):
        want = ops.linear_step(x, part.contiguous(), [], [0.5, 0.4], data=(1.5, -0.5))
        assert all(map(torch.equal, ops.linear_step(x, part, [], [0.5, 0.4], data=(1.5, -0.5)), want))


BACKENDS = ["cpp", "torch"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_watch_takes_the_smallest_code_of_what_is_not_finite(bad, dtype, backend):
    x, y, u, h = inputs(4, (2, 700), dtype)
    step = Linear(Reading(1.0, -1.0, -1.0, 1.0, 2.0), (0.5, 0.5, 0.1, 0.0), 1, keeps=True)

    def code(y=y, u=u, h=h, first=NOTHING):
        seen = torch.tensor([first], dtype=torch.int32)
        fused.linear_step(x, y, [h], step, Draws(), unconditional=u, watch=Watch(seen, 12))
        return int(seen)

    def spoiled(t):
        return t.index_put((torch.tensor(1), torch.tensor(699)), torch.tensor(bad, dtype=t.dtype))

    assert code() == NOTHING
    assert code(y=spoiled(y)) == code(u=spoiled(u)) == 12
    assert code(h=spoiled(h)) == 12 + WRITTEN
    assert code(y=spoiled(y), first=5) == 5
    assert code(y=spoiled(y), first=100) == 12


@pytest.fixture(params=BACKENDS)
def backend(request):
    try:
        ops.fused.dispatch.set_backend(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))
    yield request.param
    ops.fused.dispatch.set_backend(None)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 65520.0), (torch.bfloat16, 3.396e38)])
def test_watch_sees_what_is_infinite_in_the_type_it_is_stored_in(dtype, limit, backend):
    x = torch.ones(1, 8, dtype=dtype)
    for factor, seen in ((0.99, False), (1.001, True)):
        first = torch.tensor([NOTHING], dtype=torch.int32)
        step = Linear(Reading(0.0, 1.0), (limit * factor, 0.0, 0.0), 0)
        (x_s,) = fused.linear_step(x, x, [], step, Draws(), watch=Watch(first, 0))
        assert bool(x_s.isinf().any()) == seen
        assert int(first) == (WRITTEN if seen else NOTHING)


@pytest.mark.parametrize("which", range(1, 4))
def test_watch_of_a_mixture_names_the_moment(which, backend):
    x, e1, e2, e3 = inputs(4, (2, 70))
    given = [x, e1, e2.abs(), e3]
    given[which] = given[which].index_fill(1, torch.tensor([69]), math.nan)
    first = torch.tensor([NOTHING], dtype=torch.int32)
    k = StepCoefficients.between(VPLinear(), 400, 300)
    fused.gms_step(*given, k, ops.Fit(), Draws(), watch=Watch(first, 8))
    assert int(first) == 8 + which - 1


@pytest.mark.parametrize(
    ("fit", "central", "moments"),
    itertools.product(("exact", "free", "gaussian"), (False, True), ("cumulant", "released")),
)
def test_guided_mixture_is_that_of_shifted_moments(fit, central, moments):
    x, e1, u, skew = (t.double() for t in inputs(4, (2, 40)))
    spread = 0.05 + u * u
    e2, e3 = (spread, 0.1 * skew) if central else (spread + e1**2, 0.1 * skew + 3 * e1 * spread + e1**3)
    to = u + 2.5 * (e1 - u)
    shifted = predictions.shifted(predictions.NoiseMoments(e1, e2, e3), to, central=central)
    k = StepCoefficients.between(VPLinear(), 400, 300)
    options = {"fit": fit, "central": central, "moments": moments, "seed": 3}
    want = ops.gms_step(x, *shifted, k, **options)
    got = ops.gms_step(x, e1, e2, e3, k, unconditional=u, guidance=2.5, **options)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)
    narrow = ops.gms_step(*(t.float() for t in (x, e1, e2, e3)), k, unconditional=u.float(), guidance=2.5, **options)
    torch.testing.assert_close(narrow.double(), want, rtol=0, atol=2e-4)


X = torch.rand(2, 3)
WRONG = {
    "output must be a tensor: got None": {"output": None},
    "output must match x": {"output": X[:1]},
    "unconditional must match x": {"unconditional": X[:, :2]},
    "unconditional must be given where guidance is not 1": {"guidance": 2.0},
    "terms[0] must match x": {"terms": [X[0]]},
    "weights must be 3 numbers, for x, E[x_0|x_t] and each term: got 2": {"weights": [1.0, 2.0]},
    "weights must be finite": {"weights": [1.0, math.inf, 0.0]},
    "terms must be at most 8 tensors": {"terms": [X] * 9, "weights": [0.1] * 11},
    "data must be (p, q), two numbers": {"data": 3.0},
    "data must be (p, q)": {"data": None},
    "noise_std must be finite and not negative": {"noise_std": -1.0},
    "clip must be (lo, hi)": {"clip": (1.0, -1.0)},
    "weights must be (4, 3)": {"weights": torch.rand(3, 2)},
    "weights must be (6,)": {"weights": torch.rand(5), "data": None},
    "noise_std must not be given with a tensor of weights": {
        "weights": torch.rand(6),
        "data": None,
        "noise_std": 0.1,
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    given = {"output": X, "terms": [X], "weights": [1.0, 2.0, 3.0], "data": (1.0, -1.0)} | WRONG[message]
    with pytest.raises((ValueError, TypeError)) as error:
        ops.linear_step(X, given.pop("output"), given.pop("terms"), given.pop("weights"), **given)
    assert message in str(error.value)


def test_registered_op_takes_nothing_that_kernels_would_read_beyond():
    op = torch.ops.gms_fast.linear_step
    for given, options, message in (
        ((X, None, None, [], [1.0, 0, 0, 0, 1], [1.0, 0.0]), {"keeps": True}, "reading must be given with an output"),
        ((X, X, None, [], [], [1.0, 0.0]), {}, "reading must be given with an output"),
        ((X, X, None, [X, X], [1.0, 0, 0, 0, 1], [1.0, 0.0]), {}, "for x, the inputs and the noise"),
        ((X, X, None, [], [1.0, 0, 0, 0, 1], [1.0, 0.0, 0.0]), {"results": 2}, "results must be at most 3"),
        ((X, X, None, [], [1.0, 0, 0, 0, 1], [1.0, 0.0, 0.0]), {"present": 1 << 10}, "present must name given inputs"),
        ((X, None, None, [X], [], [1.0, 0.0, 0.0]), {"present": 2}, "present must name given inputs"),
        ((X, X, None, [], [1.0, 0, 0, 0, 1], [1.0, 0.0, 0.0]), {"present": 1 << 12}, "no bits beyond the results"),
    ):
        with pytest.raises(ValueError, match=message):
            op(*given, **options)


WRONG_DRAWS = [{"sample_offset": -1}, {"step_index": -1}, {"seed": [1, 2, 3]}, {"noise": torch.ones(7)}]


@pytest.mark.parametrize("options", WRONG_DRAWS, ids=str)
def test_draws_are_checked_where_none_are_wanted(options):
    with pytest.raises(ValueError, match="must"):
        ops.linear_step(X, X, [], [1.0, 0.5], 0.0, data=(1.0, 1.0), **options)
    with pytest.raises(ValueError, match="must"):
        ops.affine_noise(X, [], [1.0], 0.0, **options)
