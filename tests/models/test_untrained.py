"""Warning about moment heads that were never trained."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from small_heads import Small, heads, pictures

import gms_fast
from gms_fast.models import MomentHeads, MomentUNet
from gms_fast.models.untrained import Warned
from gms_fast.training import train_moment_heads

pytestmark = pytest.mark.usefixtures("one_thread")
SAID = "the moment heads are not trained: train them with"


def unet():
    return MomentUNet(image_size=4, in_channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1).eval()


def said(model, solver="gms", **options):
    """Return the warnings of one run about heads."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gms_fast.sample(model, 2, n=1, solver=solver, **options)
    return [str(each.message) for each in caught if SAID in str(each.message)]


def trained(model, tmp_path, **options):
    return train_moment_heads(model, pictures(), out=tmp_path / "run", batch_size=4, progress=False, **options)


@pytest.mark.parametrize("make", [heads, unet])
def test_untrained_heads_warn_once(make):
    model = make()
    [message] = said(model)
    assert 'solver="er-sde"' in message
    assert said(model) == []


@pytest.mark.parametrize("make", [heads, unet])
def test_a_solver_that_reads_no_heads_does_not_warn(make):
    model = make()
    assert said(model, "er-sde") == []
    assert len(said(model)) == 1


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
    assert len(said(model)) == 1
    model.save_pretrained(tmp_path)
    assert len(said(MomentHeads.from_pretrained(tmp_path, model.network))) == 1


def test_a_compiled_call_does_not_look():
    model = heads()
    x, t = torch.zeros(1, 1, 4, 4), torch.tensor([5.0])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=SAID)
        torch.compile(model, backend="eager")(x, t)
    assert len(said(model)) == 1


@pytest.mark.parametrize(("mode", "warned"), [(0, True), (1, False)])
def test_nothing_is_read_while_waits_for_the_gpu_are_looked_for(mode, warned, monkeypatch):
    """`graphed` runs the loop so, and takes a wait for a network that cannot be captured."""
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    model, x = Warned(), SimpleNamespace(is_cuda=True, is_meta=False)
    last = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        model._look_at(last, x)
    assert bool(found) == warned
    assert model._looked == warned
