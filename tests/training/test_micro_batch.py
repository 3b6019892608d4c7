"""Micro-batches: a few rows at a time, with the same result in less memory."""

import pytest
import torch
from ended_runs import train_until
from small_heads import Small, pictures
from two_ranks import noise_network, train, weights

from gms_fast.models import MomentUNet
from gms_fast.storage import checkpoint
from gms_fast.training import losses, train_noise_network

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_near(got, want, atol=1e-5):
    """Compare weights of 50 steps at a learning rate of 0.01.

    A rounding in each gradient changes them by 50 x 0.01 x 2^-24 = 3e-8. A gradient is a sum of larger terms; 1e-5
    allows 300 roundings of its own size.
    """
    assert got.keys() == want.keys()
    for name, weight in want.items():
        torch.testing.assert_close(got[name], weight, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Weights of heads trained on 6 rows at once, and the final loss."""
    out = tmp_path_factory.mktemp("whole")
    return train(out), checkpoint.read(out / "checkpoint.pt")["smooth"]


@pytest.fixture
def seen(monkeypatch):
    """Number of rows in each call of the small network."""
    found, forward = [], Small.forward

    def called(self, x, t):
        found.append(len(x))
        return forward(self, x, t)

    monkeypatch.setattr(Small, "forward", called)
    return found


@pytest.mark.parametrize(("rows", "parts"), [(1, [1] * 6), (4, [4, 2]), (6, [6]), (100, [6])])
def test_result_is_that_of_all_rows_at_once(tmp_path, whole, seen, rows, parts):
    weights, loss = whole
    found = train(tmp_path, micro_batch=rows)
    assert_near(found, weights)
    assert checkpoint.read(tmp_path / "checkpoint.pt")["smooth"] == pytest.approx(loss, rel=1e-5)
    assert seen[-len(parts) :] == parts


def test_noise_network_answers_as_that_of_all_rows_at_once(tmp_path):
    found, whole = noise_network(tmp_path / "parts", micro_batch=3), noise_network(tmp_path / "whole")
    assert_near({"e1": found}, {"e1": whole})
    assert float(whole.abs().max()) > 0.1  # it has learned something


def test_conditions_are_split_with_their_rows():
    from gms_fast.schedules import VPLinear
    from gms_fast.training.noising import noised

    rows, generator = torch.arange(5.0), torch.Generator().manual_seed(0)
    whole = noised(VPLinear(), rows.view(5, 1), {"y": rows}, slice(0, 5), 5, generator, torch.device("cpu"))
    parts = whole.split(2)
    assert [len(part.x_0) for part in parts] == [2, 2, 1]
    for part in parts:
        assert torch.equal(part.condition["y"], part.x_0[:, 0])
    for name in ("x_0", "eps", "alpha", "sigma", "x_t", "time"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert whole.split(None) == whole.split(5) == [whole]


def test_a_run_goes_on_with_other_parts(tmp_path, whole, monkeypatch):
    train_until(20, monkeypatch, train, tmp_path, micro_batch=2, checkpoint_every=8)
    assert_near(train(tmp_path, micro_batch=5), whole[0])


def test_dropout_draws_for_each_part_and_alike_in_every_run(tmp_path):
    def run(name, **options):
        torch.manual_seed(0)
        size = {"image_size": 4, "in_channels": 1, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
        model = MomentUNet(**size, attention_resolutions=(), head=None, dropout=0.5)
        shared = {"steps": 4, "batch_size": 6, "warmup": 1, "progress": False, "lr": 1e-2}
        return weights(train_noise_network(model, pictures(), out=tmp_path / name, **shared, **options))

    one, again, whole = run("one", micro_batch=3), run("again", micro_batch=3), run("whole")
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.allclose(one[name], whole[name], rtol=0, atol=1e-5) for name in one)


@pytest.mark.parametrize("rows", [0, -1, 2.5, "4"])
def test_what_is_no_number_of_rows_is_refused(tmp_path, rows):
    with pytest.raises(ValueError, match="micro_batch must be an integer of at least 1, or None for all: got"):
        train(tmp_path / "run", micro_batch=rows)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "micro_batch must be less than 6: 6 rows at a time are more than cpu has memory for"),
        (4, "micro_batch must be less than 4: 4 rows at a time"),
        (1, "the network must be smaller: 1 rows at a time"),
    ],
)
def test_gpu_that_is_too_small_is_told_by_the_option_that_helps(tmp_path, monkeypatch, rows, message):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(losses, "_deviation", full)
    with pytest.raises(MemoryError, match=message):
        train(tmp_path, micro_batch=rows)
