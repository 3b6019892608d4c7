"""Schedules and step coefficients against their formulas, in float64 and beyond."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch

from gms_fast import schedules
from gms_fast.schedules import EDM, VP, Flow, Levels, Schedule, VPContinuous, VPContinuousCosine, VPCosine, VPLinear
from gms_fast.steps import StepCoefficients

EPS = 2.0**-52
SCHEDULES = [VPLinear(), VPLinear(T=4000), VPCosine(), VPCosine(T=50), VP(np.geomspace(1e-5, 0.5, 30))]


def every_time(schedule):
    return torch.arange(schedule.T, dtype=torch.float64)


def cosine_betas(T):
    """Spec: beta_i = min(1 - g((i+1)/T)/g(i/T), 0.999), in 50 digits."""
    mpmath.mp.dps = 50
    offset = mpmath.mpf("0.008")
    g = [mpmath.cos((mpmath.mpf(i) / T + offset) / (1 + offset) * mpmath.pi / 2) ** 2 for i in range(T + 1)]
    return [min(1 - g[i + 1] / g[i], mpmath.mpf("0.999")) for i in range(T)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedule_preserves_the_variance(schedule):
    t = torch.linspace(0, schedule.T - 1, 2 * schedule.T - 1, dtype=torch.float64)
    assert ((schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2) - 1).abs().max() <= 4 * EPS
    assert (schedule.log_snr(t).diff() < 0).all()


def test_linear_equals_the_product_of_its_betas():
    t = torch.arange(1000)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert np.abs(VPLinear().alpha(t).numpy() - np.sqrt(alpha_bar)).max() <= 1e-14
    assert np.abs(VPLinear().sigma(t).numpy() - np.sqrt(1 - alpha_bar)).max() <= 1e-13  # 1 - alpha_bar cancels at t = 0


def test_cosine_equals_its_formula():
    """Near T the cosine is as small as pi/2/T: rounding of its angle moves g by 2 T EPS, and log alpha sums that."""
    T = 100
    betas = cosine_betas(T)
    schedule = VPCosine(T=T)
    alpha_bar = [mpmath.mpf(1)]
    for beta in betas:
        alpha_bar.append(alpha_bar[-1] * (1 - beta))
    for t in (0, 1, 50, 98, 99):
        assert float(schedule.betas[t]) == pytest.approx(float(betas[t]), abs=8 * T * EPS)
        want = float(mpmath.sqrt(alpha_bar[t + 1]))
        assert float(schedule.alpha(t)) == pytest.approx(want, rel=16 * T * math.log(T) * EPS)
        assert float(schedule.sigma(t)) == pytest.approx(float(mpmath.sqrt(1 - alpha_bar[t + 1])), rel=1e-11)
    assert float(schedule.betas[-1]) == 0.999


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_log_snr_and_its_inverse_round_trip(schedule):
    t = torch.linspace(0, schedule.T - 1, 3 * schedule.T, dtype=torch.float64)
    lam = schedule.log_snr(t)
    torch.testing.assert_close(lam, (schedule.alpha(t) / schedule.sigma(t)).log(), rtol=0, atol=1e-10)
    # log alpha comes back with the rounding of 2 lambda, and with exp(-20)/2 where softplus turns linear
    slope = (-schedule.log_alpha(every_time(schedule))).diff()[t.long().clamp(max=schedule.T - 2)]
    tolerance = (16 * EPS * (1 + lam.abs()) + math.exp(-20) / 2 * (lam < -9.9)) / slope + 4 * EPS * schedule.T
    assert ((schedule.inverse_log_snr(lam) - t).abs() <= tolerance).all()
    ends = schedule.inverse_log_snr([100.0, -100.0])
    assert ends.tolist() == [0, schedule.T - 1]


def test_shapes_are_kept():
    schedule = VPLinear()
    for f in (schedule.alpha, schedule.sigma, schedule.log_snr, schedule.network_time):
        assert f(3).shape == ()
        assert f(torch.zeros(2, 3)).shape == (2, 3)
        assert f([1, 2]).dtype == torch.float64
    assert schedule.inverse_log_snr(0.0).shape == ()


def test_log_alpha_is_linear_between_integers():
    schedule = VPLinear()
    ends = schedule.alpha([400, 401]).log()
    assert float(schedule.alpha(400.25).log()) == pytest.approx(float(ends[0] + 0.25 * (ends[1] - ends[0])), rel=1e-14)


def test_default_grid_is_the_released_one():
    schedule = VPLinear()
    assert schedule.timesteps(5) == [999, 799, 599, 399, 199, 0]
    assert schedule.timesteps(10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, 0]
    assert schedule.timesteps(3) == [999, 665, 332, 0]
    assert schedule.timesteps(1) == [999, 0]
    assert VPLinear(T=4000).timesteps(4) == [3999, 2999, 1999, 999, 0]
    for steps in (1, 7, 333, 999):
        assert all(a > b for a, b in pairwise(schedule.timesteps(steps)))


@pytest.mark.parametrize("schedule", SCHEDULES[:3], ids=repr)
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_log_snr_spacing_visits_the_nearest_times(schedule, steps):
    times = schedule.timesteps(steps, spacing="log-snr")
    first, last = schedule.log_snr([schedule.T - 1, 0]).tolist()
    wanted = [first + (last - first) * k / steps for k in range(steps + 1)]
    assert times[0] == schedule.T - 1
    assert times[-1] == 0
    nearest = []
    for lam in wanted[1:-1]:  # the time within half a step of log_snr(t) = lam
        near = [t for t in range(schedule.T) if float(schedule.log_snr(min(t + 0.5, schedule.T - 1))) <= lam]
        nearest.append(min(near))
    assert len(times) == steps + 1
    if len({*nearest, times[0], 0}) == steps + 1:  # else neighbours that share a time spread
        assert [times[0], *nearest, 0] == times


@pytest.mark.parametrize("exponent", [0.7, 1, 2.0])
def test_exponent_spacing_is_its_formula(exponent):
    times = VPLinear().timesteps(10, spacing=exponent)
    assert times == [round(999 * (1 - (k / 10) ** exponent)) for k in range(11)]


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), VPLinear(T=50)], ids=repr)
@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "log-snr", "karras", "angle", 0.5, 3.0])
def test_no_step_vanishes(schedule, spacing):
    """The nearest free times are visited in place of times that rounding makes equal."""
    for steps in (1, 12, 20, 47, 48, 49, 500, 998, 999):
        if steps < schedule.T:
            times = schedule.timesteps(steps, spacing=spacing)
            assert len(times) == steps + 1
            assert (times[0], times[-1]) == (schedule.T - 1, 0)
            assert all(a > b for a, b in pairwise(times))
    assert schedule.timesteps(schedule.T, spacing=spacing) == list(range(schedule.T - 1, -1, -1))


def test_crowded_times_are_the_nearest_free_ones():
    times = VPCosine().timesteps(20, spacing="karras")
    even = VPCosine().grid(20, "karras").tolist()
    alone = [(t, e) for t, e in zip(times, even, strict=True) if 20 < e < 980]
    assert len(alone) > 4
    assert all(abs(t - e) <= 0.5 for t, e in alone)


def test_too_few_whole_times_are_said():
    with pytest.warns(UserWarning, match=r"4 steps instead of 10: from t = 4 on VPLinear\(T=1000\)"):
        assert VPLinear().timesteps(10, t_max=4.2) == [4, 3, 2, 1, 0]


def test_zero_terminal_snr():
    """betas that end with 1 leave no signal at the end, and alpha is linear on the way there."""
    betas = VPLinear(T=100).betas.clone()
    betas[-1] = 1
    schedule = VP(betas)
    assert (float(schedule.alpha(99)), float(schedule.sigma(99))) == (0, 1)
    assert torch.equal(schedule.alpha([0, 50, 98]), VPLinear(T=100).alpha([0, 50, 98]))
    assert float(schedule.alpha(98.75)) == pytest.approx(float(schedule.alpha(98)) / 4, rel=1e-12)
    times = torch.tensor([98.75, 98.5, 98, 97.5, 3, 0], dtype=torch.float64)
    torch.testing.assert_close(schedule.inverse_log_snr(schedule.log_snr(times)), times, rtol=1e-9, atol=1e-9)
    assert float(schedule.inverse_log_snr(-math.inf)) == 99
    for spacing in ("uniform", "quadratic", "angle"):
        assert len(schedule.timesteps(7, spacing=spacing)) == 8
    with pytest.raises(ValueError, match="spacing 'karras' needs finite"):
        schedule.timesteps(7, spacing="karras")


def test_levels_are_a_table_in_either_order():
    alphas, sigmas, asked = [0.0, 0.6, 0.8, 1.0], [1.0, 0.8, 0.6, 0.0], [999, 700, 300, 0]
    for flip in (1, -1):
        levels = Levels(alphas[::flip], sigmas[::flip], asked[::flip])
        assert levels.times == levels.timesteps(3) == [3, 2, 1, 0]
        assert levels.alpha(levels.times).tolist() == alphas
        assert levels.sigma(levels.times).tolist() == sigmas
        assert levels.network_time(levels.times).tolist() == asked
        assert levels.from_network_time(torch.tensor(asked).float()).tolist() == levels.times
        assert levels.timesteps(2) == [3, 2, 0]
        assert levels.inverse_log_snr(levels.log_snr([3.0, 1.0, 0.0])).tolist() == [3, 1, 0]
        assert schedules.build(levels.config).agrees(levels, levels.times)
    assert Levels([1.0], [2.0]).network_time([0.0]).tolist() == [0]


def test_flow_shifts_its_even_grid():
    """t becomes s t/(1 + (s - 1) t), the levels of an even grid with s times the noise."""
    even, shifted = Flow(), Flow(shift=3.0)
    a, b = (torch.tensor(f.timesteps(8), dtype=torch.float64)[1:-1] for f in (even, shifted))
    torch.testing.assert_close(b / (1 - b), 3 * a / (1 - a), rtol=1e-12, atol=0)
    assert (shifted.timesteps(8)[0], shifted.timesteps(8)[-1]) == (1, 0)
    assert shifted.timesteps(8, spacing="angle") == even.timesteps(8, spacing="angle")
    inner = Flow(0.9, 0.1, shift=3.0).timesteps(8)
    assert (inner[0], inner[-1]) == (0.9, 0.1)


def test_schedule_without_a_word_asks_as_the_model_does():
    said = VPLinear(T=1000, rescale_time=True)
    assert VPLinear(T=50).asked_like(said).network_time(49).tolist() == 980
    assert VPLinear(T=50, rescale_time=False).asked_like(said).network_time(49).tolist() == 49
    assert VPLinear(T=50).asked_like(VPLinear()).network_time(49).tolist() == 49
    assert Flow(shift=2.0).asked_like(Flow(time_scale=1000)).network_time(0.5).tolist() == 500
    assert Flow(shift=2.0).asked_like(Flow(time_scale=1000)).shift == 2
    assert Flow(time_scale=1).asked_like(Flow(time_scale=1000)).network_time(0.5).tolist() == 0.5
    for other in (None, EDM(), said):
        assert Flow().asked_like(other).network_time(0.5).tolist() == 0.5


def test_schedule_of_a_file_without_a_word_rescales():
    old = {"name": "VPLinear", "T": 50, "beta_1": 1e-3, "beta_T": 0.4, "time_shift": 0}
    assert schedules.stored(old).network_time(49).tolist() == 980
    assert schedules.stored(VPLinear(T=50).config).network_time(49).tolist() == 49
    assert schedules.stored(VPLinear().config).config == VPLinear().config


def test_network_time_is_what_the_network_was_trained_with():
    assert VPLinear().network_time([0, 1, 999]).tolist() == [0, 1, 999]
    assert VPCosine(T=4000).network_time([0, 1, 3999]).tolist() == [0, 1, 3999]
    assert VPCosine(T=4000, rescale_time=True).network_time([0, 1, 3999]).tolist() == [0, 0.25, 999.75]
    assert VPLinear(time_shift=1).network_time([0, 998]).tolist() == [1, 999]
    assert VPLinear(T=4000, time_shift=1, rescale_time=True).network_time(3).tolist() == 1.0


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(T=4000), VPLinear(T=300, time_shift=1)], ids=repr)
def test_from_network_time_is_the_inverse(schedule):
    t = every_time(schedule)
    assert torch.equal(schedule.from_network_time(schedule.network_time(t).float()), t)  # float32, as networks get it
    halves = t + 0.5
    torch.testing.assert_close(schedule.from_network_time(schedule.network_time(halves)), halves, rtol=1e-14, atol=0)


def spec_coefficients(schedule, t, s):
    """docs/notation.md section 1 in 50 digits, from the betas themselves."""
    mpmath.mp.dps = 50
    betas = [mpmath.mpf(float(b)) for b in schedule.betas]
    alpha_t, alpha_s = (mpmath.sqrt(mpmath.fprod(1 - b for b in betas[: i + 1])) for i in (t, s))
    sigma_t, sigma_s = (mpmath.sqrt(1 - a**2) for a in (alpha_t, alpha_s))
    alpha_ts = alpha_t / alpha_s
    beta_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2
    share = beta_ts / sigma_t**2
    names = {"alpha_t": alpha_t, "sigma_t": sigma_t, "alpha_s": alpha_s, "sigma_s": sigma_s}
    step = {"A": alpha_ts * sigma_s**2 / sigma_t**2, "B": alpha_s * share, "c": sigma_s**2 * share}
    return names | step, float(share)


@pytest.mark.parametrize(("t", "s"), [(999, 998), (999, 0), (500, 499), (400, 300), (199, 0), (1, 0)])
def test_step_coefficients_are_those_of_the_spec(t, s):
    """log alpha is a sum of T terms, off by T EPS |log alpha|; beta_ts/sigma_t^2 divides that by itself."""
    schedule = VPLinear()
    step = StepCoefficients.between(schedule, t, s)
    want, share = spec_coefficients(schedule, t, s)
    tolerance = 4 * EPS + 4 * t * EPS * float(-schedule.log_alpha(float(t))) / share + 8 * EPS / share
    for name, value in want.items():
        assert getattr(step, name) == pytest.approx(float(value), rel=tolerance), name
    assert step.var_max == math.inf
    assert step.as_list() == [step.alpha_t, step.sigma_t, step.A, step.B, step.c, math.inf]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_step_carries_the_marginal_along(schedule):
    """x_t ~ N(alpha_t x_0, sigma_t^2) becomes x_s ~ N(alpha_s x_0, sigma_s^2)."""
    last = schedule.T - 1
    for t, s in ((last, 0), (last, last - 1), (last, last // 2), (last // 2, last // 3), (1, 0)):
        k = StepCoefficients.between(schedule, t, s)
        assert k.A * k.alpha_t + k.B == pytest.approx(k.alpha_s, rel=1e-12)
        assert k.A**2 * k.sigma_t**2 + k.c == pytest.approx(k.sigma_s**2, rel=1e-12)
        assert min(k.A, k.B, k.c) > 0


def test_coefficients_at_a_time_remove_all_noise():
    schedule = VPLinear()
    k = StepCoefficients.at(schedule, 7)
    assert (k.alpha_t, k.sigma_t) == (float(schedule.alpha(7)), float(schedule.sigma(7)))
    assert (k.alpha_s, k.sigma_s, k.A, k.B, k.c) == (1, 0, 0, 1, 0)


@pytest.mark.parametrize("schedule", SCHEDULES[:4], ids=repr)
def test_config_builds_the_same_schedule(schedule):
    again = schedules.build(schedule.config)
    assert type(again) is type(schedule)
    assert torch.equal(again.betas, schedule.betas)
    assert again.config == schedule.config


def test_names_build_schedules():
    kinds = {name: type(schedules.build(name)) for name in schedules.names()}
    assert kinds == {
        "linear": VPLinear, "cosine": VPCosine, "edm": EDM, "flow": Flow,
        "vp": VPContinuous, "vp-cosine": VPContinuousCosine,
    }  # fmt: skip


CONTINUOUS = [VPContinuous(), VPContinuousCosine(), EDM(), Flow(), Flow(t_max=0.99, t_min=0.01)]


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=repr)
def test_continuous_schedule_round_trips_and_is_monotone(schedule):
    t = torch.linspace(schedule.t_min or 1e-6, min(schedule.t_max, 80.0), 500, dtype=torch.float64)[:-1]
    lam = schedule.log_snr(t)
    assert (lam.diff() < 0).all()
    torch.testing.assert_close(schedule.inverse_log_snr(lam), t, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(schedule.from_network_time(schedule.network_time(t)), t, rtol=1e-14, atol=0)
    again = schedules.build(schedule.config)
    assert type(again) is type(schedule)
    assert again.config == schedule.config
    assert repr(again) == repr(schedule)


def test_continuous_schedules_are_their_formulas():
    t = torch.tensor([0.001, 0.3, 0.9], dtype=torch.float64)
    for schedule in (VPContinuous(), VPContinuousCosine()):
        assert ((schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2) - 1).abs().max() <= 4 * EPS
        assert float(schedule.alpha(0.0)) == 1
        assert float(schedule.sigma(0.0)) == 0
    beta = torch.linspace(0, 0.3, 100_001, dtype=torch.float64) * 19.9 + 0.1
    assert float(VPContinuous().alpha(0.3).log()) == pytest.approx(-float(torch.trapezoid(beta, dx=3e-6)) / 2, rel=1e-9)
    # at 10^-3, 1 - alpha^2 in float32 would give 4.557594
    assert float(VPContinuous().log_snr(1e-3)) == pytest.approx(4.557715, abs=1e-6)
    cosine = (torch.tensor([0.308, 0.008], dtype=torch.float64) / 1.008 * math.pi / 2).cos()
    assert float(VPContinuousCosine().alpha(0.3)) == pytest.approx(float(cosine[0] / cosine[1]), rel=1e-14)
    assert EDM().alpha(t).tolist() == [1, 1, 1]
    assert torch.equal(EDM().sigma(t), t)
    assert torch.equal(Flow().alpha(t), 1 - t)
    assert VPContinuous().network_time(0.5) == 499.5


def test_edm_grid_is_that_of_karras_and_ends_at_zero():
    ends = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
    want = [(ends[0] + i / 9 * (ends[1] - ends[0])) ** 7 for i in range(10)]
    times = EDM().timesteps(10)
    assert times[:-1] == pytest.approx(want, rel=1e-12)
    assert times[-1] == 0
    assert EDM().timesteps(1) == [80.0, 0.0]
    assert EDM(rho=3).timesteps(5)[1] == pytest.approx(
        (80 ** (1 / 3) + (0.002 ** (1 / 3) - 80 ** (1 / 3)) / 4) ** 3, rel=1e-12
    )


@pytest.mark.parametrize("schedule", [VPContinuous(), VPContinuousCosine(), Flow(0.99, 0.01)], ids=repr)
def test_grids_are_even_in_what_names_them(schedule):
    def even(spacing, value):
        times = torch.tensor(schedule.timesteps(6, spacing=spacing), dtype=torch.float64)
        assert (times[0], times[-1]) == (schedule.t_max, schedule.t_min)
        gaps = value(times).diff()
        torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-9, atol=1e-12)

    even("uniform", lambda t: t)
    even("quadratic", torch.sqrt)
    even("log-snr", schedule.log_snr)
    even("karras", lambda t: (-schedule.log_snr(t) / 7).exp())
    even("angle", schedule.angle)


def test_quadratic_grid_of_discrete_times_counts_from_the_data():
    times = torch.tensor(VPLinear().timesteps(5, spacing="quadratic"), dtype=torch.float64)
    gaps = ((times + 1) / 1000).sqrt().diff()
    assert times[0] == 999
    assert times[-1] == 0
    assert (gaps - gaps.mean()).abs().max() < 0.01  # times are rounded


@pytest.mark.parametrize("schedule", [*CONTINUOUS, EDM(sigma_max=80.3), EDM(sigma_max=10.0)], ids=repr)
def test_rounding_does_not_lead_out_of_the_schedule(schedule):
    """Of a network's float32 times, and of log-SNR there and back."""
    narrow = schedule.network_time(schedule.t_max).float()
    level, highest = (float(schedule.sigma(t)) for t in (schedule.from_network_time(narrow), schedule.t_max))
    assert level == pytest.approx(highest, rel=2.0**-20)
    if math.isfinite(lam := float(schedule.log_snr(schedule.t_max))):
        assert float(schedule.inverse_log_snr(lam)) <= schedule.t_max


def test_two_formulas_are_a_schedule():
    class Squared(Schedule):
        def alpha(self, t):
            return 1 - self.sigma(t)

        def sigma(self, t):
            return torch.as_tensor(t, dtype=torch.float64) ** 2

    k = StepCoefficients.between(Squared(), 0.5, 0.0)
    assert (k.alpha_t, k.sigma_t, k.A, k.B, k.c) == (0.75, 0.25, 0, 1, 0)
    with pytest.raises(NotImplementedError, match="give timesteps"):
        Squared().inverse_log_snr(0.0)


def test_step_from_pure_noise_knows_nothing_of_the_state():
    k = StepCoefficients.between(Flow(), 1.0, 0.25)
    assert (k.A, k.B, k.c) == (0, 0.75, 0.0625)


LINEAR = VPLinear()
REFUSALS = {
    "one beta": (lambda: VP([0.1]), "betas must be a sequence of at least two"),
    "matrix of betas": (lambda: VP(np.full((2, 2), 0.1)), r"betas must be .* got shape \(2, 2\)"),
    "beta of 1": (lambda: VP([1.0, 0.1]), r"betas must lie in \(0, 1\)"),
    "two betas of 1": (lambda: VP([0.1, 1.0, 1.0]), r"betas must lie in \(0, 1\)"),
    "word on time": (
        lambda: VP([0.1, 0.2], rescale_time="yes"),
        "rescale_time must be .* None: got 'yes'",
    ),
    "level off a table": (lambda: Levels([1.0, 0.5], [0.0, 0.5]).sigma(2), r"times must lie in \[0, 1\]"),
    "level between": (lambda: Levels([1.0, 0.5], [0.0, 0.5]).sigma(0.5), "times must be integers for Levels"),
    "level twice": (lambda: Levels([1.0, 2.0], [0.5, 1.0]), "alphas, sigmas must be levels .* strictly fall or rise"),
    "level of NaN": (lambda: Levels([1.0, math.nan], [0.5, 1.0]), "alphas must be finite"),
    "negative level": (lambda: Levels([1.0, -1.0], [0.5, 1.0]), "alphas, sigmas must not be negative"),
    "tables apart": (lambda: Levels([1.0, 0.5], [0.5]), r"sigmas must be \(n,\) like alphas, n from 1 .*: got \(1,\)"),
    "many levels": (lambda: Levels([1.0, 0.5], [0.0, 0.5]).timesteps(2), "steps must be at most 1 for Levels"),
    "flow shift": (lambda: Flow(shift=0), "shift must be positive: got 0"),
    "flow time scale": (lambda: Flow(time_scale=-1), "time_scale must be positive, or None: got -1"),
    "beta of NaN": (lambda: VP([0.1, math.nan]), r"betas must lie in \(0, 1\)"),
    "T": (lambda: VPLinear(T=1), "T must be an integer from 2 to 1000000: got 1"),
    "T beyond memory": (lambda: VPCosine(T=10**12), "T must be an integer from 2 to 1000000: got 1000000000000"),
    "T of another type": (lambda: VPLinear(T="9" * 1000), "T must be an integer .*: got '999.{0,100}'$"),
    "beta_T of NaN": (lambda: VPLinear(beta_T=math.nan), "beta_T must be a finite number: got nan"),
    "time_shift": (lambda: VPLinear(time_shift=None), "time_shift must be a finite number .*: got None"),
    "endless sigma": (lambda: EDM(sigma_max=math.inf), "sigma_max must be a finite number: got inf"),
    "endless shift": (lambda: Flow(shift=math.inf), "shift must be a finite number: got inf"),
    "beta of the SDE": (lambda: VPContinuous(beta_1=True), "beta_1 must be a finite number: got True"),
    "fractional T": (lambda: VPLinear(T=10.5), "T must be an integer from 2 to 1000000: got 10.5"),
    "late time": (lambda: LINEAR.alpha(1000), r"times must lie in \[0, 999\] for VPLinear\(T=1000\): got 1000"),
    "negative time": (lambda: LINEAR.sigma([-1.0, 3.0]), r"times must lie in .* got -1 \.\. 3"),
    "NaN time": (lambda: LINEAR.log_snr(math.nan), "times must lie in .* got nan"),
    "same time": (lambda: StepCoefficients.between(LINEAR, 5, 5), "s must be less noisy than t: got t=5, s=5"),
    "upwards": (lambda: StepCoefficients.between(LINEAR, 5, 9), "s must be less noisy than t: got t=5, s=9"),
    "no steps": (lambda: LINEAR.timesteps(0), "steps must be at least 1: got 0"),
    "too many steps": (lambda: LINEAR.timesteps(1001), r"steps must be at most 1000 .* got 1001"),
    "spacing": (lambda: LINEAR.timesteps(5, spacing="cubic"), "spacing must be .* got 'cubic'"),
    "spacing of 0": (lambda: LINEAR.timesteps(5, spacing=0), "spacing must be .* positive exponent: got 0"),
    "no time": (
        lambda: LINEAR.check_times([]),
        r"timesteps must be one or more strictly decreasing times: got \[\]",
    ),
    "rising times": (lambda: LINEAR.check_times([0, 5]), "timesteps must be .* strictly decreasing"),
    "repeated times": (lambda: LINEAR.check_times([5, 5, 0]), "timesteps must be .* strictly decreasing"),
    "time between": (lambda: LINEAR.check_times([5.5, 0]), "timesteps must be integers"),
    "time outside": (lambda: LINEAR.check_times([1000, 0]), r"times must lie in \[0, 999\]"),
    "EDM ends": (lambda: EDM(sigma_min=90), "sigma_min, sigma_max must have .* got 90, 80.0"),
    "EDM rho": (lambda: EDM(rho=0), "rho must be positive: got 0"),
    "Flow ends": (lambda: Flow(t_max=1.5), "t_max, t_min must have .* got 1.5, 0.0"),
    "betas of the SDE": (lambda: VPContinuous(beta_0=30), "beta_0, beta_1 must have"),
    "sigma outside": (lambda: EDM().check_times([90, 0]), r"times must lie in \[0, 80\] for EDM.* got 0 \.\. 90"),
    "NaN among times": (lambda: EDM().check_times([80, math.nan]), "timesteps must be .* strictly decreasing"),
    "endless log-snr": (lambda: Flow().timesteps(3, spacing="log-snr"), "spacing 'log-snr' needs finite"),
    "endless karras": (lambda: Flow().timesteps(3, spacing="karras"), "spacing 'karras' needs finite"),
    "name": (lambda: schedules.build("sigmoid"), "schedule must be one of cosine, edm, .*: got 'sigmoid'"),
    "nameless": (lambda: schedules.build({"T": 10}), "schedule must be one of cosine, edm, .*: got None"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_argument_is_named(case):
    call, message = REFUSALS[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_cosine_schedule_refuses_a_fraction_of_steps():
    with pytest.raises(ValueError, match="T must be an integer"):
        VPCosine(T=10.5)
