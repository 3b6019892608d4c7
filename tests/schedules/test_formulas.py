"""User-defined schedules: plain formulas work, impossible levels are refused by name."""

import math

import pytest
import torch

import gms_fast
from gms_fast.schedules import Schedule, VPLinear
from gms_fast.steps import StepCoefficients


def made(alpha, sigma):
    class Circle(Schedule):
        t_max, t_min = 1.0, 0.0

        def alpha(self, t):
            return alpha(t)

        def sigma(self, t):
            return sigma(t)

        def network_time(self, t):
            return 1000 * t

    return Circle()


PLAIN = {
    "arithmetic": (lambda t: 1 - t**2, lambda t: t),
    "math": (lambda t: math.sqrt(1 - t**2), lambda t: float(t)),
    "branch": (lambda t: 1 - t**2 if t > 0 else 1, lambda t: max(t, 0)),
    "constant": (lambda t: 1.0, lambda t: t),
}


@pytest.mark.parametrize("solver", ["ddim", "er-sde", "dpm-solver++", "unipc"])
@pytest.mark.parametrize("formulas", PLAIN.values(), ids=PLAIN)
def test_plain_formulas_draw_what_tensors_do(formulas, solver):
    def drawn(schedule):
        options = {"solver": solver, "prediction": "x0", "shape": (3,), "clip": None, "n": 2}
        return gms_fast.sample(lambda x, t: x / 2, 4, schedule=schedule, **options)

    alpha, sigma = formulas
    tensors = made(
        lambda t: torch.tensor([float(alpha(each)) for each in t.flatten()], dtype=torch.float64).view(t.shape),
        lambda t: torch.tensor([float(sigma(each)) for each in t.flatten()], dtype=torch.float64).view(t.shape),
    )
    assert torch.equal(drawn(made(alpha, sigma)), drawn(tensors))


@pytest.mark.parametrize("times", [0.25, [0.25, 0.5], torch.tensor([[0.25], [0.5]])])
def test_formulas_take_times_of_every_kind(times):
    schedule, t = made(*PLAIN["math"]), torch.as_tensor(times, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(times), (1 - t**2).sqrt())
    assert torch.equal(schedule.network_time(times), 1000 * t)


def test_a_formula_over_one_of_ours_is_converted_too():
    class Shifted(VPLinear):
        def log_alpha(self, t):
            return super().log_alpha(t) * 1

    torch.testing.assert_close(Shifted().sigma([999, 3]), VPLinear().sigma([999, 3]))
    with pytest.raises(ValueError, match="times must lie in"):
        Shifted().sigma([1000, 3])


@pytest.mark.parametrize("timesteps", [None, [1.0, 0.5, 0.0]])
@pytest.mark.parametrize(
    ("formulas", "said"),
    [
        (
            (lambda t: 1 - t / 2, lambda t: t * (1 - t)),
            r"Circle.sigma must be above 0 at every time where a step begins.* 0 at t = 1$",
        ),
        ((lambda t: 1 - t, lambda t: 0 * t), "Circle.alpha and .sigma must not be 0 at the same time: .* at t = 1$"),
        ((lambda t: 1 - t, lambda t: (t - 2).log()), "Circle.sigma must be finite and not negative: got nan at t = 1$"),
        ((lambda t: 1 - t, lambda t: 1 / (1 - t)), "Circle.sigma must be finite and not negative: got inf at t = 1$"),
        ((lambda t: 1 - 2 * t, lambda t: t), "Circle.alpha must be finite and not negative: got -1 at t = 1$"),
        (
            (lambda t: torch.ones(5), lambda t: t),
            "Circle.alpha must return a number for each of . times: got 5 numbers",
        ),
    ],
)
def test_impossible_levels_are_refused_before_the_run(formulas, said, timesteps):
    with pytest.raises(ValueError, match=said):
        gms_fast.sample(pytest.fail, 4, schedule=made(*formulas), solver="ddim", shape=(3,), timesteps=timesteps)


def test_what_is_no_number_is_refused_by_the_name_of_the_formula():
    with pytest.raises(TypeError, match=r"Circle.alpha must return a number for each time: got None"):
        made(lambda t: None, lambda t: t).alpha([0.5, 1.0])


def test_an_error_of_the_formula_itself_is_shown():
    with pytest.raises(RuntimeError, match="my own"):
        made(lambda t: exec("raise RuntimeError('my own')"), lambda t: t).alpha([0.5, 1.0])


def test_a_step_between_two_levels_is_checked():
    schedule = made(lambda t: 1 - t / 2, lambda t: t * (1 - t))
    with pytest.raises(ValueError, match=r"Circle.sigma must be above 0"):
        StepCoefficients.between(schedule, 1.0, 0.5)
