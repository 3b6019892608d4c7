"""All schedules: grids, network times, names, configurations and errors."""

import math

import numpy as np
import pytest
import torch

from gms_fast import schedules
from gms_fast.schedules import EDM, VP, Flow, Levels, VPContinuous, VPContinuousCosine, VPCosine, VPLinear
from gms_fast.steps import StepCoefficients

SCHEDULES = [VPLinear(), VPLinear(T=4000), VPCosine(), VPCosine(T=50), VP(np.geomspace(1e-5, 0.5, 30))]


def every_time(schedule):
    return torch.arange(schedule.T, dtype=torch.float64)


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
    assert torch.equal(schedule.from_network_time(schedule.network_time(t).float()), t)  # float32, as networks take it
    halves = t + 0.5
    torch.testing.assert_close(schedule.from_network_time(schedule.network_time(halves)), halves, rtol=1e-14, atol=0)


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
    "level twice": (lambda: Levels([1.0, 2.0], [0.5, 1.0]), "alphas, sigmas must have ratios .* strictly increase"),
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
