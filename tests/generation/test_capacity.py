"""Measured batch size: what is measured, with a clock and memory of the test's own."""

import time

import pytest
import torch
from generated import Net, made

from gms_fast.generation import capacity, settings
from gms_fast.generation.capacity import SECONDS, SIZES, Use, fastest, use

LARGE = 1 << 60


def flat_from(size, memory=0):
    """Device that a batch of `size` fills: larger batches take proportionally longer."""
    return lambda n: Use(max(n, size) / 1000, memory * n)


@pytest.mark.parametrize("size", [8, 16, 256, 4096])
def test_smallest_size_that_fills_the_device_is_found(size):
    assert fastest(flat_from(size), LARGE, LARGE) == size


def test_gain_of_less_than_a_twentieth_is_no_reason_for_a_larger_batch():
    assert fastest(lambda n: Use(n**0.99, 0), LARGE, LARGE) == SIZES[0]
    assert fastest(lambda n: Use(n**0.9, 0), LARGE, LARGE) == SIZES[-1]


def test_memory_is_a_limit_and_a_batch_that_would_not_fit_is_not_tried():
    tried = []

    def measure(n):
        tried.append(n)
        return Use(1.0, 10 * n)

    assert fastest(measure, 1000, LARGE) == 64
    assert tried == [8, 16, 32, 64]


def test_size_before_memory_ran_out_is_taken():
    assert fastest(lambda n: None if n > 32 else Use(1.0, 0), LARGE, LARGE) == 32


def test_batch_is_no_larger_than_there_are_samples():
    assert fastest(lambda n: Use(1.0, 0), LARGE, 100) == 128


@pytest.mark.parametrize("found", [None, Use(1.0, 1001)])
def test_memory_for_no_batch_is_refused(found):
    with pytest.raises(ValueError, match=r"memory must be enough for a batch of 8 samples: got 9\.31e-07 GiB"):
        fastest(lambda n: found, 1000, LARGE)


def test_slow_network_is_not_measured_for_ever(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def measure(n):
        now[0] += SECONDS / 2 + 1
        return Use(1.0, 0)

    assert fastest(measure, LARGE, LARGE) == 16


def test_use_is_the_quicker_time_and_none_where_memory_runs_out():
    def out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def wrong(*_):
        raise RuntimeError("another error")

    found = use(lambda: time.sleep(0.01), torch.device("cpu"))
    assert 0.01 <= found.seconds < 1
    assert found.memory >= 0
    assert use(out, torch.device("cpu")) is None
    with pytest.raises(RuntimeError, match="another error"):
        use(wrong, torch.device("cpu"))


def test_batch_size_that_was_measured_is_kept_and_taken_again(tmp_path, monkeypatch):
    rows = []
    monkeypatch.setattr("gms_fast.generation.loop.fastest", lambda measure, limit, most, multiple: measure(8) and 32)
    report = made(tmp_path, Net(seen=rows.append), batch_size="auto", shard_size=None)
    assert report.drawn == 21
    assert set(rows) == {8, 32}
    assert settings.stored(tmp_path)["batch_size"] == 32
    monkeypatch.setattr("gms_fast.generation.loop.fastest", lambda *_: pytest.fail("it is known"))
    assert made(tmp_path, batch_size="auto", shard_size=None).there == 21
    made(tmp_path / "other", batch_size=32, shard_size=None)
    name = "000000000-000000020.npz"
    assert (tmp_path / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_memory_of_a_call_is_counted():
    held = []
    assert use(lambda: held.append(torch.ones(1 << 26)), torch.device("cpu")).memory > 1 << 28
    held.clear()


def test_size_divides_that_of_a_shard():
    assert fastest(flat_from(256), LARGE, LARGE, 96) == 32
    with pytest.raises(ValueError, match='shard_size must be a multiple of 8 if batch_size is "auto": got 100'):
        fastest(flat_from(256), LARGE, LARGE, 100)


def test_free_memory_of_a_host_is_shared_by_its_ranks(monkeypatch):
    monkeypatch.setattr(capacity, "_kib", lambda file, name: {"MemAvailable": 4000}[name])
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = capacity.free(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (alone, capacity.free(torch.device("cpu"))) == (2_048_000, 512_000)
    monkeypatch.setattr(capacity, "_kib", lambda file, name: None)
    assert capacity.free(torch.device("cpu")) == 8 << 30
