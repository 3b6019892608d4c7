"""Warning about moment heads that were never trained."""

import copy
import warnings

import pytest
import torch
from small_heads import Small, heads, pictures

import gms_fast
from gms_fast.guidance import ClassifierFree
from gms_fast.models import MomentHeads, MomentUNet, unet
from gms_fast.training import train_moment_heads

pytestmark = pytest.mark.usefixtures("one_thread")
SAID = "the model's moment heads are untrained"
OPTIONS = {"image_size": 4, "in_channels": 1, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}


def small_unet(**options):
    return MomentUNet(**OPTIONS, **options).eval()


def said(model, solver="gms", draw=gms_fast.sample, **options):
    """Return the warnings of one run about untrained heads."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw(model, steps=2, n=1, solver=solver, **options)
    return [each for each in caught if SAID in str(each.message)]


def trained(model, tmp_path, **options):
    return train_moment_heads(model, pictures(), out=tmp_path / "run", batch_size=4, progress=False, **options)


@pytest.mark.parametrize("make", [heads, small_unet])
@pytest.mark.parametrize(("solver", "name"), [("gms", "GMS"), ("sn-ddpm", "SNDDPM")])
def test_a_solver_that_reads_untrained_heads_warns(make, solver, name):
    [warning] = said(make(), solver)
    assert warning.filename == __file__
    assert f"so {name} draws wrong samples: train them with" in str(warning.message)


@pytest.mark.parametrize("make", [heads, small_unet])
@pytest.mark.parametrize("solver", ["ddim", "er-sde", "dpm-solver++"])
def test_a_solver_that_reads_no_heads_does_not_warn(make, solver):
    assert said(make(), solver) == []


def test_wrappers_do_not_hide_untrained_heads():
    model = small_unet(num_classes=2)
    guided = ClassifierFree(model, {"y": torch.tensor([0])}, {"y": torch.tensor([1])}, scale=2.0)
    assert len(said(guided)) == 1


def test_generation_warns_before_it_draws(tmp_path):
    def draw(model, **options):
        return gms_fast.generate(model, tmp_path, **options)

    assert len(said(small_unet(), draw=draw)) >= 1


def test_trained_heads_do_not_warn_however_they_come(tmp_path):
    model = trained(heads(), tmp_path, steps=2)
    model.save_pretrained(tmp_path / "saved")
    network = model.network
    loaded = MomentHeads.from_pretrained(tmp_path / "saved", network)
    by_weights, alone = heads(network), heads(network)
    by_weights.load_state_dict(model.state_dict())
    alone.heads.load_state_dict(model.heads.state_dict())
    resumed = trained(heads(), tmp_path, steps=2, resume=True)
    for each in (model, loaded, by_weights, alone, resumed, copy.deepcopy(model), gms_fast.load("digits")):
        assert said(each) == []


def test_saved_heads_that_are_untrained_warn_again(tmp_path):
    model = heads(Small())
    model.save_pretrained(tmp_path)
    assert len(said(MomentHeads.from_pretrained(tmp_path, model.network))) == 1


def test_trained_weights_are_read_once(monkeypatch):
    model, read = gms_fast.load("digits"), []
    monkeypatch.setattr(unet, "recorded", lambda weight: read.append(weight) or False)
    monkeypatch.setattr(torch.Tensor, "any", lambda self: read.append("any") or torch.tensor(True))
    assert not model.untrained
    assert not model.untrained
    assert read.count("any") <= 1


def test_weights_are_not_read_while_a_graph_is_captured(monkeypatch):
    model = small_unet()
    assert model.untrained
    monkeypatch.setattr(unet, "recorded", lambda weight: True)
    assert not model.untrained
    monkeypatch.undo()
    assert model.untrained
