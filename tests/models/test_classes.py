"""Networks with classes: the embedding of y, the ways to give it, and errors."""

import json

import pytest
import torch

import gms_fast
from gms_fast import guidance, io
from gms_fast.models import MomentHeads, MomentUNet
from gms_fast.models.classes import check_classes
from gms_fast.network import Network

pytestmark = pytest.mark.usefixtures("one_thread")


def network(num_classes=3, **options):
    """A small network whose zero-initialised weights are random."""
    torch.manual_seed(0)
    small = {"image_size": 8, "in_channels": 1, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
    model = MomentUNet(**small | {"attention_resolutions": (), "num_classes": num_classes} | options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def given(n=4):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.linspace(0, 999, n)


@torch.no_grad()
def test_class_is_added_to_the_embedding_of_the_time():
    model, (x, t), y = network(), given(), torch.tensor([0, 2, 3, 1])
    plain = network(None)
    plain.load_state_dict({n: w for n, w in model.state_dict().items() if n != "label_emb.weight"})
    _, emb = plain.features(x, t)
    _, found = model.features(x, t, y)
    assert torch.equal(found, emb + model.label_emb.weight[y])
    model.label_emb.weight.zero_()
    for e, want in zip(model(x, t, y), plain(x, t), strict=True):
        assert torch.equal(e, want)


@torch.no_grad()
def test_every_way_of_a_call_takes_the_class():
    model, (x, t), y = network(), given(), torch.tensor([0, 2, 3, 1], dtype=torch.uint8)
    e1 = model(x, t, y=y).e1
    assert torch.equal(model.first_moment(x, t, y=y), e1)
    assert torch.equal(model.observed(x, t, y=y)[0], e1)
    assert torch.equal(Network(model, condition={"y": y})(x, t, first=True), e1)
    torch.testing.assert_close(model(x[2:], t[2:], y[2:]).e1, e1[2:], rtol=0, atol=1e-5)
    assert torch.equal(model(x, t, y[:1]).e1, model(x, t, y[:1].expand(4)).e1)
    assert not torch.allclose(model(x, t, y.flip(0)).e1, e1)


@torch.no_grad()
def test_network_without_classes_is_what_it_was():
    model, (x, t) = network(None), given()
    assert "num_classes" not in model.config
    assert not hasattr(model, "needed")
    assert model.no_class is None
    assert not [name for name in model.state_dict() if "label" in name]
    with pytest.raises(ValueError, match="y must not be given: the network was created without num_classes"):
        model(x, t, torch.zeros(4, dtype=torch.long))


@torch.no_grad()
def test_saved_network_keeps_its_classes(tmp_path):
    model, (x, t), y = network(), given(), torch.tensor([0, 1, 2, 3])
    io.save(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / io.CONFIG).read_text())["config"]["num_classes"] == 3
    again = io.load(tmp_path / "model")
    assert (again.no_class, again.needed) == (3, ("y",))
    assert torch.equal(again(x, t, y).e1, model(x, t, y).e1)
    seen = {**model.config, "num_classes": None, "null_class": True}
    with pytest.raises(ValueError, match="num_classes is 3, but None according to the weights"):
        io._check_agreement({**model.config}, seen)


@torch.no_grad()
def test_samples_are_of_their_classes_with_guidance_and_without():
    model, y = network(), torch.tensor([0, 1, 2])
    x = gms_fast.sample(model, 3, n=3, condition={"y": y})
    alone = gms_fast.sample(model, 3, n=1, sample_offset=2, condition={"y": y[2:]})
    torch.testing.assert_close(x[2:], alone, rtol=0, atol=1e-4)
    assert not torch.allclose(x, gms_fast.sample(model, 3, n=3, condition={"y": y.flip(0)}))
    none = {"y": torch.tensor([model.no_class])}
    led = [guidance.ClassifierFree(model, unconditional=none, scale=w) for w in (0.0, 1.0, 2.0)]
    unconditional, same, more = (gms_fast.sample(g, 3, n=3, solver="ddim", condition={"y": y}) for g in led)
    plain = gms_fast.sample(model, 3, n=3, solver="ddim", condition={"y": y})
    torch.testing.assert_close(same, plain, rtol=0, atol=1e-5)
    nobody = gms_fast.sample(model, 3, n=3, solver="ddim", condition=none)
    torch.testing.assert_close(unconditional, nobody, rtol=0, atol=1e-4)
    assert not torch.allclose(more, same)


@torch.no_grad()
def test_heads_on_a_network_with_classes():
    base, (x, t), y = network(head=None), given(), torch.tensor([0, 1, 2, 3])
    model = MomentHeads(base, "out", condition={"y": y[:1]})
    assert tuple(model.needed) == ("y",)
    assert torch.equal(model(x, t, y=y).e1, base(x, t, y))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, r'y must be given, as in sample\(model, condition=\{"y": \.\.\}\): this MomentUNet has classes'),
        (torch.tensor([0, 1]), r"y must be an integer tensor \(4,\), one class per sample: got torch.int64 \(2,\)"),
        (torch.zeros(4), r"y must be an integer tensor .* got torch.float32 \(4,\)"),
        (torch.zeros(4, 1, dtype=torch.long), r"got torch.int64 \(4, 1\)"),
        (torch.tensor([0, 1, 2, 4]), r"y must lie in 0 \.\. 2, or be 3 for no class: got 0 \.\. 4"),
        (torch.tensor([-1]), r"got -1 \.\. -1"),
        (3, "got int"),
    ],
)
def test_bad_classes_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        network()(*given(), y)
    if y is not None:
        with pytest.raises(ValueError, match=message):
            check_classes(y, 4, 3, 3)


def test_number_of_classes_is_looked_at():
    with pytest.raises(ValueError, match=r"num_classes must be an integer from 1 .*: got 0"):
        network(0)


def test_network_with_classes_compiles_into_one_graph():
    model, (x, t), y = network(head=None), given(), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x, t, y), model(x, t, y))


def test_files_of_others_have_no_class_for_none(tmp_path):
    """The last row of a released file is its last class.

    Guidance must not use it as the null class, and training must not overwrite it.
    """
    model, (x, t) = network(3, null_class=False), given()
    torch.save(model.state_dict(), tmp_path / "released.pt")
    found = io.load(tmp_path / "released.pt", image_size=8, moments="central", normalised=False)
    assert (found.no_class, found.needed, found.config["num_classes"]) == (None, ("y",), 3)
    assert found(x, t, torch.tensor([0, 1, 2, 2])).e1.isfinite().all()
    with pytest.raises(ValueError, match=r"y must lie in 0 \.\. 2: got 0 \.\. 3"):
        found(x, t, torch.tensor([0, 1, 2, 3]))
    io.save(found, tmp_path / "model")
    assert io.load(tmp_path / "model").no_class is None
