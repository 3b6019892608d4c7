"""Start of an edit: noise levels by share, time and level, and the accepted images."""

import math

import pytest
import torch
from gaussian_field import LAW
from toys import Model, polynomial

from gms_fast import constants, editing, schedules, solvers
from gms_fast.editing import start
from gms_fast.tables import GGDMTable

VP, EDM, FLOW = schedules.VPLinear(), schedules.EDM(), schedules.Flow(shift=3.0)
PICTURES = torch.linspace(-1, 1, 2 * 3 * 16).reshape(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("schedule", "strength", "time"),
    [
        (VP, 0.5, 500),  # 499.5, rounded to a whole time
        (VP, "0.5", 500),
        (VP, "share=0.25", 250),
        (VP, "t=37", 37),
        (VP, 1, 999),
        (VP, 0.0001, 0),
        (FLOW, 0.5, 0.75),  # 3 s/(1 + 2 s)
        (FLOW, "level=1", 0.5),
        (EDM, 0.5, (0.5 * 80 ** (1 / 7) + 0.5 * 0.002 ** (1 / 7)) ** 7),
        (EDM, "level=2.5", 2.5),
        (EDM, " t = 2.5 ", 2.5),
        (schedules.Levels([1.0, 1.0, 1.0], [0.1, 1.0, 10.0]), 0.6, 1),
    ],
)
def test_times_of_strengths(schedule, strength, time):
    assert start.time_of(schedule, strength) == pytest.approx(time, rel=1e-12)


def test_whole_times_are_asked_for_where_there_are_no_others():
    for schedule in (VP, schedules.Levels([1.0, 1.0, 1.0], [0.1, 1.0, 10.0])):
        with pytest.raises(ValueError, match=r"strength must be a whole time from 0 to \d+: got 't=1.4'"):
            start.time_of(schedule, "t=1.4")


@pytest.mark.parametrize("schedule", [VP, schedules.Levels([1.0] * 20, [2.0 ** (i - 9) for i in range(20)])], ids=repr)
def test_fewer_steps_where_fewer_times_are_left(schedule):
    with pytest.warns(UserWarning, match="strength t=2 leaves 2 steps instead of 4: from t = 2 on") as warned:
        times = editing.timesteps(Model(schedule=schedule), 4, strength="t=2", solver="ddim")
    assert times == [2, 1, 0]
    assert len(warned) == 1


def test_nothing_is_kept_of_schedules_that_come_and_go():
    before = len(constants._KNOWN)
    for i in range(3):
        levels = schedules.Levels([1.0, 1.0, 1.0], [0.1, 1.0 + i, 10.0])
        model = Model(polynomial, sample_shape=(3, 4, 4), schedule=levels)
        editing.stroke(model, PICTURES, strength=0.5, steps=1, solver="ddim")
        editing.invert(model, PICTURES, steps=2, solver="ddim")
    assert len(constants._KNOWN) == before


@pytest.mark.parametrize("strength", [0, 0.0, "0", "share=0"])
def test_no_strength_is_no_time(strength):
    assert start.time_of(VP, strength) is None
    assert editing.timesteps(Model(), strength=strength) == []


def test_a_time_without_noise_is_none():
    levels = schedules.Levels([1.0, 1.0, 1.0], [0.0, 1.0, 10.0])
    assert start.time_of(levels, "t=0") is None
    assert start.time_of(levels, "level=0") is None


@pytest.mark.parametrize("solver", ["gms", "ddim", "heun", "dpm-solver++", "er-sde"])
@pytest.mark.parametrize("schedule", [VP, EDM, schedules.Flow(t_max=0.999)], ids=repr)
def test_steps_go_from_the_strength_to_the_end_of_the_grid(schedule, solver):
    model = Model(schedule=schedule)
    times = editing.timesteps(model, 5, strength=0.4, solver=solver)
    whole = solvers.build(solver).times(schedule, 5)
    assert times[0] == start.time_of(schedule, 0.4)
    assert times[-1] == whole[-1]
    assert len(set(times)) == len(set(whole)) == 6
    assert editing.timesteps(model, 5, strength=1, solver=solver) == whole


def test_the_least_strength_is_one_call():
    assert editing.timesteps(Model(), 5, strength=1e-4) == [0.0]


def test_noised_pictures():
    model = Model(sample_shape=(3, 4, 4))
    for strength in (0.3, 0.7):
        t = float(start.time_of(VP, strength))
        alpha, sigma = float(VP.alpha(t)), float(VP.sigma(t))
        z = (editing.noised(model, PICTURES, strength=strength, seed=4) - alpha * PICTURES) / sigma
        other = (editing.noised(model, 0 * PICTURES, strength=0.9, seed=4)) / float(VP.sigma(899.0))
        assert torch.allclose(z, other, atol=1e-5)  # the same noise at all levels
    assert abs(float(z.mean())) < 5 / math.sqrt(z.numel())


def test_one_picture_or_several():
    model = Model(sample_shape=(3, 4, 4))
    given = {"shape": None, "clip": (-1, 1), "device": None, "dtype": None}
    rows = start.pictures(model, PICTURES[0], n=4, **given)
    assert rows.shape == (4, 3, 4, 4)
    assert torch.equal(rows, PICTURES[:1].expand(4, 3, 4, 4))
    assert start.pictures(model, PICTURES, n=None, **given).shape == (2, 3, 4, 4)
    unknown = Model(sample_shape=None)
    assert start.pictures(unknown, PICTURES[0], n=None, **given).shape == (1, 3, 4, 4)
    half = start.pictures(model, PICTURES, n=2, **{**given, "dtype": torch.bfloat16})
    assert half.dtype == torch.bfloat16


BAD = {
    "a number": (torch.tensor(0.5), ValueError, r"image must be \(3, 4, 4\) or"),
    "float8": (PICTURES.to(torch.float8_e5m2), TypeError, "image must be a floating-point tensor .* got torch.float8"),
    "bytes": (
        PICTURES.byte(),
        TypeError,
        r"image must be a floating-point tensor in the model's range .* got torch.uint8",
    ),
    "path": ("a.png", TypeError, "image must be a floating-point tensor .* got str"),
    "size": (PICTURES[..., :3], ValueError, r"image must be \(3, 4, 4\) or \(n, 3, 4, 4\): got \(2, 3, 4, 3\)"),
    "mode": (PICTURES[:, :1], ValueError, r"got \(2, 1, 4, 4\)"),
    "rows": (PICTURES[:0], ValueError, "n must be at least 1"),
    "range": (127.5 * (PICTURES + 1), ValueError, r"image must lie in the data range \[-1, 1\]: got 0 .. 255"),
    "nan": (PICTURES / 0, ValueError, "image must be finite: it holds NaN or infinity"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pictures_are_refused(case):
    image, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        editing.stroke(Model(sample_shape=(3, 4, 4)), image)


def test_pictures_from_0_to_1_are_asked_about():
    with pytest.warns(UserWarning, match=r"image lies in \[0, 1\] but the model's range is \[-1, 1\]"):
        editing.noised(Model(sample_shape=(3, 4, 4), clip=(-1.0, 1.0)), (PICTURES + 1) / 2, strength=0.5)


def test_latents_have_no_range():
    model = Model(sample_shape=(3, 4, 4), clip=None)
    assert editing.noised(model, 50 * PICTURES, strength="t=0").abs().max() > 40


@pytest.mark.parametrize(
    "solver",
    [
        solvers.Teleport(LAW, 5.0, solvers.DDIM()),
        solvers.GGDM(GGDMTable.of(solvers.UniP(), VP, VP.timesteps(5, 0.7)[:-1])),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_solvers_that_start_at_all_noise_are_refused_in_the_middle(solver):
    with pytest.raises(ValueError, match=f"solver must be one that can start in the middle.*{type(solver).__name__}"):
        editing.timesteps(Model(), 5, strength=0.5, solver=solver)
    assert editing.timesteps(Model(), 5, strength=1, solver=solver)[0] == 999


def test_models_without_a_schedule_are_refused():
    with pytest.raises(ValueError, match="schedule must be given: this model has no attribute `schedule`"):
        editing.noised(lambda x, t: x, PICTURES, strength=0.5)
