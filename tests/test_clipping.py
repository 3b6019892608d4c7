"""Data range: assumed or given, and never changed when given."""

import pytest
from strangers import Exact, sample, std, warned

import gms_fast

pytestmark = pytest.mark.usefixtures("one_thread")


def test_assumed_range_that_cuts_is_said_once():
    x, messages = warned(Exact(mean=0.0, std=3.0), 50)
    assert std(x) < 1
    assert len(messages) == 1
    assert "clip=(-1, 1) was assumed" in messages[0]
    assert 0.5 < int(messages[0].split("%")[0].split()[-1]) / 100 < 0.75  # 71 % of N(0, 3^2) lies beyond 1.1


@pytest.mark.parametrize("how", ["call", "model", "range"])
def test_range_that_is_said_is_kept_and_not_warned_of(how):
    model = Exact(mean=0.0, std=3.0, **({"clip": None} if how == "model" else {}))
    options = {"call": {"clip": None}, "model": {}, "range": {"clip": (-30.0, 30.0)}}[how]
    x, messages = warned(model, 200, **options)
    assert not messages
    assert std(x) == pytest.approx(3.0, rel=0.02)
    told = Exact(mean=0.0, std=3.0, clip=(-0.5, 0.5))
    assert float(sample(told, 5, n=4).abs().max()) == 0.5
    assert not warned(Exact(mean=0.0, std=3.0), 5, clip=(-1.0, 1.0))[1]  # the caller chose the range


def test_pictures_are_not_warned_of():
    assert not warned(Exact(), 20)[1]
    assert not warned(gms_fast.load("digits"), 5, n=4)[1]
    stranger = gms_fast.load("digits")
    plain = Exact()
    plain.sample_shape, plain.schedule = stranger.sample_shape, stranger.schedule
    plain.__class__ = type("Plain", (), {"__call__": lambda self, x, t: stranger(x, t).e1})
    assert not warned(plain, 20, n=16)[1]  # it overshoots [-1, 1] slightly, as every trained network does
