"""The model inside the package: its files, its size, and that ten steps of GMS draw digits a classifier recognises."""

import json
import sys
from pathlib import Path

import pytest
import torch

import gms_fast
from gms_fast import _native

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "gms_fast" / "models" / "mnist"


@pytest.fixture(scope="module")
def model():
    return gms_fast.load("mnist")


def test_weights_are_half_precision_and_at_most_six_megabytes():
    from safetensors.torch import load_file

    weights = load_file(FOLDER / "model.safetensors")
    assert all(w.dtype == torch.float16 for w in weights.values())
    assert 1e6 <= sum(w.numel() for w in weights.values()) <= 2e6
    assert (FOLDER / "model.safetensors").stat().st_size <= 6e6


def test_model_card_tells_how_it_was_made():
    card = (FOLDER / "README.md").read_text()
    for word in ("licence", "seed", "gms-fast train", "curve", "accuracy"):
        assert word in card.lower()
    assert (FOLDER / "noise_curve.csv").exists()
    assert (FOLDER / "heads_curve.csv").exists()


def test_every_step_has_three_finite_moments(model):
    for t in (999.0, 500.0, 100.0, 0.0):
        moments = model(torch.randn(2, 1, 28, 28), torch.full((2,), t))
        assert all(torch.isfinite(e).all() for e in moments)


@pytest.mark.skipif(not _native.available, reason="plain torch rounds a tensor's tail differently")
@pytest.mark.parametrize("solver", ["sn-ddpm", "gms"])
def test_picture_does_not_depend_on_the_batch(model, solver):
    """Same noise to the bit; the network's own rounding, some 1e-6 of e3, may differ with the batch size.

    GMS takes a cube root of the third moment, which near zero turns that into (13.5e-6)^(1/3) = 0.024 at most.
    """
    whole = gms_fast.sample(model, 3, n=7, seed=5, solver=solver)
    for i in (0, 3, 6):
        difference = (gms_fast.sample(model, 3, n=1, seed=5, sample_offset=i, solver=solver)[0] - whole[i]).abs()
        assert difference.max() < (1e-4 if solver == "sn-ddpm" else 0.024)
        assert difference.median() < 1e-5


def test_committed_scores_meet_the_bar():
    scores = json.loads((ROOT / "bench" / "results" / "digits.json").read_text())
    (drawn,) = (v for k, v in scores.items() if k.startswith("1000 samples, gms, 10 steps"))
    assert drawn["confident"] >= 0.8
    assert min(drawn["classes"]) > 0


@pytest.mark.slow
def test_ten_steps_draw_digits_of_every_class(monkeypatch):
    """The bar of the committed scores (0.8), on fewer samples: 200 allow three standard errors, 0.085."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import digits

    result = digits.scores(steps=10, solver="gms", samples=200)
    sys.modules.pop("digits")
    drawn = result["200 samples, gms, 10 steps"]
    assert result["classifier accuracy on held-out real digits"] > 0.95
    assert drawn["confident"] >= 0.8 - 0.085
    assert min(drawn["classes"]) > 0
