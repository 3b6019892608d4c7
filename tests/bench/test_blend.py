"""A denoiser blended with the Gaussian's: equal to either at the ends, better in between."""

import json

import pytest
import torch
from places import ROOT

from bench.experiments import blend
from gms_fast.quality import cells, subjects

RESULT = ROOT / "bench" / "results" / "blend.json"


@pytest.fixture(scope="module")
def subject():
    return subjects.build("digits")


def at(subject, weight, level):
    """Return (x, t, alpha, sigma, output) of the blend at a noise level."""
    schedule = subject.model.schedule
    t = schedule.inverse_log_snr(-torch.tensor(level).log())
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    x = alpha * subject.reference[:6] + sigma * torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    times = schedule.network_time(t).float().expand(6)
    blended = blend.Blended(subject.model, cells.gaussian("digits"), [0.1, 100], [weight, weight])
    return x, times, alpha, sigma, blended(x, times)


def test_weight_one_is_the_network(subject):
    x, t, _, _, got = at(subject, 1.0, 3.0)
    torch.testing.assert_close(got.e1, subject.model(x, t).e1, rtol=0, atol=1e-6)
    assert torch.equal(got.e3, subject.model(x, t).e3)


def test_weight_zero_is_the_gaussian(subject):
    x, _, alpha, sigma, got = at(subject, 0.0, 3.0)
    torch.testing.assert_close((x - sigma * got.e1) / alpha, cells.gaussian("digits").denoise(x, alpha, sigma))


def test_weights_of_least_error_are_nearer_than_either(subject, monkeypatch):
    monkeypatch.setattr(blend, "IMAGES", 60)
    monkeypatch.setattr(blend, "LEVELS", (50, 3, 0.5))
    found = blend.weights(subject, cells.gaussian("digits"))
    assert all(row["blend"] <= min(row["network"], row["gaussian"]) + 1e-9 for row in found)
    assert [row["weight"] for row in found] == sorted(row["weight"] for row in found)


@pytest.mark.skipif(not RESULT.exists(), reason="the experiment has not been run")
def test_behind_a_jump_the_blend_brings_nothing_beyond_the_spread():
    """Check the committed result that is the reason why the package has no blend."""
    for model in json.loads(RESULT.read_text())["models"].values():
        rows = {(r["solver"], r["start"], r["calls"], r["denoiser"]): r["frechet"] for r in model["rows"]}
        jumped = [key[:3] for key in rows if key[1:] == ("teleport", key[2], "network")]
        assert len(jumped) == 9
        for key in jumped:
            (plain, spread), (blended, other) = rows[(*key, "network")], rows[(*key, "blend")]
            assert plain - blended < 2 * max(spread, other), key
