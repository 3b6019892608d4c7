"""The search for GMS settings: its points, its loop and its errors."""

import json

import numpy as np
import pytest
import torch
from toys import Model

import gms_fast
from gms_fast import search, statistics
from gms_fast.models import PointCloud
from gms_fast.schedules import EDM, VPLinear
from gms_fast.search.distance import KernelDistance, Units
from gms_fast.search.gms import Numbers
from gms_fast.solvers import DDIM, GMS

POINTS = (torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.6).float() * 1.6 - 0.8
MODEL = PointCloud(POINTS, 0.1)
COVARIANCE = statistics.gaussian(POINTS)
QUICK = {"evaluations": 30, "batch_size": 64, "score_samples": 64, "progress": False}


def found(steps=3, **options):
    return search.gms(MODEL, POINTS, steps, **QUICK | options)


def test_the_origin_is_where_it_begins():
    times = VPLinear().timesteps(4, "angle")
    solver = GMS(covariance=COVARIANCE, weight=0.3, clip_pixel=1.5)
    numbers = Numbers(VPLinear(), solver, times)
    assert numbers.names == ["weight", "switch", "clip_pixel"]
    got, same = numbers(np.zeros(len(numbers)))
    assert got == times
    assert (same.weight, same.switch, same.clip_pixel) == pytest.approx((0.3, solver.level, 1.5))
    assert solver.level == pytest.approx(0.75 * COVARIANCE.spread)


def test_points_are_times_and_options():
    numbers = Numbers(EDM(), GMS(clip_pixel=None, fit="gaussian"), [80.0, 10.0, 1.0, 0.002])
    assert numbers.names == []
    times, _ = numbers(np.array([0.0, np.log(2), 0.0]))
    gaps = np.array([70.0, 18.0, 0.998])
    assert times == pytest.approx([80.0, *(80 - 79.998 * np.cumsum(gaps)[:-1] / gaps.sum()), 0.002])
    assert all(t % 1 == 0 for t in Numbers(VPLinear(), GMS(), [999, 300, 0])(np.array([0.1, 0.2, 0, 0]))[0])


def test_it_finds_better_numbers():
    """It improves a poor start, judged on samples that it has not used."""
    solver = GMS(covariance=COVARIANCE)
    times, better = found(solver=solver, spacing="uniform", evaluations=60)
    assert times[0] == 999
    assert times[-1] == 0
    see = Units(POINTS.flatten(1))
    distance = KernelDistance(see(POINTS.flatten(1)))

    def judged(solver, times):
        x = gms_fast.sample(MODEL, solver=solver, timesteps=times, n=1000, seed=7)
        return float(distance(see(x.flatten(1))))

    assert judged(better, times) < 0.8 * judged(solver, MODEL.schedule.timesteps(3, "uniform"))


def test_the_seed_determines_it_and_it_goes_on(tmp_path):
    want, out = found(), tmp_path / "values.json"
    assert found() == want
    assert found(out=out) == want
    values = json.loads(out.read_text())
    out.write_text(json.dumps(values | {"values": values["values"][:11]}))
    assert found(out=out) == want
    assert json.loads(out.read_text()) == values
    with pytest.raises(ValueError, match="batch_size: 64 there, 65 asked for"):
        found(out=out, batch_size=65)
    out.write_text("[]")
    with pytest.raises(ValueError, match="was not written by a search"):
        found(out=out)


def test_a_solver_with_a_switch_of_its_own(tmp_path):
    """The values found with one covariance are not used to resume with another."""
    out, solver = tmp_path / "values.json", GMS(covariance=COVARIANCE, switch=2)
    _, better = found(solver=solver, evaluations=15, out=out)
    assert better.covariance is COVARIANCE
    other = GMS(covariance=statistics.gaussian(POINTS[:30]), switch=2)
    with pytest.raises(ValueError, match=r"covariance: .* there"):
        found(solver=other, evaluations=15, out=out)


def test_what_it_refuses():
    with pytest.raises(TypeError, match="solver must be a GMS"):
        found(solver=DDIM())
    with pytest.raises(ValueError, match="evaluations must be an integer of at least 1"):
        found(evaluations=0)
    with pytest.raises(ValueError, match="steps must be an integer of at least 1"):
        found(0)
    with pytest.raises(ValueError, match=r"data must be \(N, 1, 4, 4\)"):
        search.gms(MODEL, POINTS.flatten(1), 3)
    with pytest.raises(ValueError, match="features must be differentiable in the images"):
        found(features=lambda x: x.detach().flatten(1))
    with pytest.raises(ValueError, match="with 3 moments"):
        search.gms(Model(lambda x, t: x, sample_shape=(1, 4, 4)), POINTS, 3, **QUICK)
