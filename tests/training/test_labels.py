"""Networks with classes: training on labels, label dropout, and errors."""

import pytest
import torch
from ended_runs import train_until
from tiny_networks import TINY
from torch.utils.data import DataLoader, TensorDataset

from gms_fast.models import MomentUNet
from gms_fast.storage import checkpoint
from gms_fast.training import loop, train_moment_heads, train_noise_network
from gms_fast.training.batches import Wanted

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = {"warmup": 2, "progress": False, "checkpoint_every": 2}
X = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
Y = torch.arange(24) % 3


def network(**options):
    torch.manual_seed(0)
    return MomentUNet(**TINY, attention_resolutions=(), num_classes=3, **{"head": "simple", **options})


def trained(out, data=(X, Y), train=train_noise_network, **options):
    options = {"steps": 6, "batch_size": 8, "label_dropout": 0.3, **QUIET, **options}
    return train(network(), data, out=out, **options)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(got, want):
    assert [name for name in want if not torch.equal(got[name], want[name])] == []


def test_every_row_of_the_embedding_is_learned(tmp_path):
    before, after = network().label_emb.weight, trained(tmp_path, steps=10).label_emb.weight
    assert (before != after).any(1).all()
    never = trained(tmp_path / "never", steps=10, label_dropout=0.0).label_emb.weight
    assert (before != never).any(1).tolist() == [True, True, True, False]


def test_classes_make_a_difference(tmp_path):
    """Images of a class are one shade of grey, so the class determines the image."""
    data = torch.linspace(-0.8, 0.8, 3)[Y].view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    model = trained(tmp_path, (data, Y), steps=150, lr=3e-3, label_dropout=0.1)
    x, t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.full((3,), 900.0)
    with torch.no_grad():
        e1 = model.first_moment(x, t, y=torch.arange(3)).mean((1, 2, 3)) - x.mean((1, 2, 3))
    assert e1[0] > e1[2]  # the noise is x_t less the grey


def test_a_run_that_goes_on_drops_the_same_labels(tmp_path, monkeypatch):
    whole = weights(trained(tmp_path / "whole", flips=True))
    train_until(5, monkeypatch, trained, tmp_path / "cut", flips=True)
    assert_same(weights(trained(tmp_path / "cut", flips=True)), whole)


def test_rows_at_a_time_and_batches_of_a_loader_keep_their_labels(tmp_path):
    whole, parts = (weights(trained(tmp_path / str(n), micro_batch=n)) for n in (None, 3))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-4)
    loader = DataLoader(TensorDataset(X, Y), batch_size=8)
    seen = trained(tmp_path / "loader", loader, batch_size=None)
    assert (seen.label_emb.weight != network().label_emb.weight).any(1).all()


def test_labels_are_dropped_as_often_as_said():
    wanted, y = Wanted(network()), torch.full((10_000,), 1, dtype=torch.uint8)
    rows = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) < 0.1
    found = wanted.dropped({"y": y}, rows)["y"]
    assert torch.equal(found == 3, rows)
    assert torch.equal(found == 1, ~rows)


def test_heads_learn_with_labels(tmp_path):
    before, model = weights(network()), trained(tmp_path, train=train_moment_heads)
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in changed} == {"out2", "out3"}


def test_checkpoints_of_runs_without_them_do_not_know_of_labels_and_weights(tmp_path):
    trained(tmp_path, label_dropout=0.0, steps=1)
    known = checkpoint.read(tmp_path / "checkpoint.pt")["configuration"]
    assert not known.keys() & {"label_dropout", "weights"}
    with pytest.raises(ValueError, match=r"label_dropout: None there, 0\.1 asked for"):
        trained(tmp_path, label_dropout=0.1, steps=1)
    with pytest.raises(ValueError, match="weights: None there, 'min-snr' asked for"):
        trained(tmp_path, label_dropout=0.0, steps=1, weights="min-snr")


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (X, {}, r"data must be \(images, condition\) with y: MomentUNet depends on it"),
        ((X, Y[1:]), {}, r"data must have a y for each of 24 images: got \(23,\)"),
        ((X, Y + 2), {}, r"y must lie in 0 \.\. 2, or be 3 for no class: got 2 \.\. 4"),
        ((X, Y.float()), {}, "y must be an integer tensor"),
        ((X, {"z": Y}), {}, "with y: MomentUNet depends on it"),
        ((X, Y), {"label_dropout": 1.0}, r"label_dropout must lie in \[0, 1\): got 1\.0"),
        ((X, Y), {"weights": "snr"}, "weights must be one of uniform, min-snr, edm: got 'snr'"),
    ],
)
def test_bad_labels_are_refused_before_the_first_step(tmp_path, data, options, message):
    with pytest.raises(ValueError, match=message):
        trained(tmp_path / "run", data, **options)
    assert not (tmp_path / "run").exists()


def test_dropout_of_labels_is_for_networks_with_classes(tmp_path):
    plain = MomentUNet(**TINY, attention_resolutions=())
    with pytest.raises(ValueError, match=r"label_dropout must be 0 for a network without a null class: got 0\.1"):
        train_noise_network(plain, X, steps=1, out=tmp_path / "run", label_dropout=0.1, **QUIET)
    with pytest.raises(ValueError, match=r"data must be images alone, or .*: MomentUNet needs no condition"):
        train_noise_network(plain, (X, Y), steps=1, out=tmp_path / "run", **QUIET)


# --- options that change only time and memory ---


def test_bytes_are_the_pictures_that_they_stand_for(tmp_path):
    """uint8 data equals what `gms_fast.data.load` makes of it, to the bit."""
    data = (X * 127.5 + 127.5).round().to(torch.uint8)
    floating = Wanted(network()).floating(data)
    assert floating.aminmax() == (data.float() / 127.5 - 1).aminmax()
    found, wanted = (weights(trained(tmp_path / str(k), (images, Y))) for k, images in enumerate((data, floating)))
    assert_same(found, wanted)
    with pytest.raises(ValueError, match=r"data must be \(N, 1, 8, 8\) for this model"):
        trained(tmp_path / "other", (data[:, :, :4], Y))


def test_compiled_step_is_the_same_to_rounding(tmp_path):
    """The first losses agree; another loss weight or seed changes them by a tenth or more."""
    curves = {}
    for name, options in {"plain": {}, "compiled": {"compile": True}, "other": {"seed": 1}}.items():
        trained(tmp_path / name, steps=3, weights="edm", **options)
        state = torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        curves[name] = state["smooth"]
    assert curves["compiled"] == pytest.approx(curves["plain"], rel=1e-4)
    assert curves["other"] != pytest.approx(curves["plain"], rel=1e-3)


def test_checkpoints_by_seconds(tmp_path, monkeypatch):
    saved, save = [], loop.State.save
    monkeypatch.setattr(loop.State, "save", lambda self: (saved.append(self.step), save(self)))
    options = {"checkpoint_every": 100, "steps": 5}
    whole = weights(trained(tmp_path / "never", checkpoint_seconds=1000.0, **options))
    assert saved == [5]
    assert_same(weights(trained(tmp_path / "always", checkpoint_seconds=1e-9, **options)), whole)
    assert saved == [5, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"checkpoint_seconds must be positive, or None: got 0"):
        trained(tmp_path / "bad", checkpoint_seconds=0)


def test_losses_that_are_read_late_are_those_of_their_steps(tmp_path, monkeypatch):
    """Reading losses every few steps, as on a GPU, gives the same curve and weights."""
    options = {"steps": 101, "checkpoint_every": 30, "batch_size": 2}
    whole = weights(trained(tmp_path / "each", **options))
    monkeypatch.setattr(loop, "_read_after", lambda device: 16)
    assert_same(weights(trained(tmp_path / "late", **options)), whole)
    each, late = ((tmp_path / name / "curve.csv").read_text().splitlines() for name in ("each", "late"))
    assert len(each) == 4
    assert [row.split(",")[:2] for row in late] == [row.split(",")[:2] for row in each]
