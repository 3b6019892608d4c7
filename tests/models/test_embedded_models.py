"""The embedded model: its files and size, and digits that a classifier recognises."""

import pytest
import torch
from places import ROOT

import gms_fast
from gms_fast import solvers
from gms_fast.ops import native
from gms_fast.quality import cells, classifier, subjects
from gms_fast.solvers import GMS

FOLDERS = [ROOT / "gms_fast" / "models" / name for name in gms_fast.io.EMBEDDED]


@pytest.fixture(scope="module")
def model():
    return gms_fast.load("mnist")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_weights_are_half_precision_and_at_most_six_megabytes(folder):
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    assert all(w.dtype == torch.float16 for w in weights.values())
    assert 5e5 <= sum(w.numel() for w in weights.values()) <= 2e6
    assert (folder / "model.safetensors").stat().st_size <= 6e6


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_model_card_describes_the_training(folder):
    card = (folder / "README.md").read_text()
    for word in ("licence", "seed", "curve", "## training", "docs/quality.md"):
        assert word in card.lower()
    assert (folder / "noise_curve.csv").exists()
    assert (folder / "heads_curve.csv").exists()


def test_every_step_has_three_finite_moments(model):
    for t in (999.0, 500.0, 100.0, 0.0):
        moments = model(torch.randn(2, 1, 28, 28), torch.full((2,), t))
        assert all(torch.isfinite(e).all() for e in moments)


@pytest.mark.skipif(not native.available, reason="plain torch rounds a tensor's tail differently")
@pytest.mark.parametrize(
    ("solver", "median"), [("sn-ddpm", 1e-5), (GMS(fit="exact", component="sample"), 1e-5), ("gms", 1e-4)]
)
def test_picture_does_not_depend_on_the_batch(model, solver, median):
    """Images agree up to the network's rounding, which may depend on the batch.

    The noise is equal to the bit, e3 to about 1e-6. GMS takes a cube root of the third moment, which turns that into
    at most (13.5e-6)^(1/3) = 0.024 near zero. Each element draws a component, and such a difference in a weight may
    also switch one of the 784. The network then passes a little of it to all other elements.
    """
    whole = gms_fast.sample(model, 3, n=7, seed=5, solver=solver)
    for i in (0, 3, 6):
        difference = (gms_fast.sample(model, 3, n=1, seed=5, sample_offset=i, solver=solver)[0] - whole[i]).abs()
        assert difference.max() < (1e-4 if solver == "sn-ddpm" else 0.024)
        assert difference.median() < median


@pytest.mark.slow(30)
@pytest.mark.parametrize(("name", "n", "sure"), [("mnist", 200, 0.8), ("digits", 400, 0.8)])
def test_ten_steps_draw_digits_of_every_class(name, n, sure):
    """The default solver reaches the bar, less three standard errors of a share of n samples."""
    subject = subjects.build(name)
    images = cells.samples(cells.Cell(name, "gms", steps=10), subject, n)[0]
    net = classifier.load(subject.features)
    confidence = net.confidence(net.features(images))
    assert (confidence > 0.9).float().mean() >= sure - 3 * (sure * (1 - sure) / n) ** 0.5
    assert torch.bincount(net(images).argmax(1), minlength=10).min() > 0


@pytest.mark.parametrize("steps", [5, 10])
def test_learned_tables_are_of_this_network(model, steps):
    solver = solvers.GGDM(solvers.load_table(f"mnist/{steps}"))
    assert solver.table.network == gms_fast.statistics.fingerprint(model)
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    x = gms_fast.sample(model, steps, solver=solver, n=2)
    handle.remove()
    assert len(calls) == steps
    assert x.shape == (2, 1, 28, 28)
    with pytest.raises(ValueError, match="network"):
        gms_fast.sample(gms_fast.load("digits"), steps, solver=solver, n=1)
    assert (FOLDERS[0] / f"ggdm-{steps}.safetensors").stat().st_size < 4000
