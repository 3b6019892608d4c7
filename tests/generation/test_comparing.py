"""Verification: stored samples are drawn again and compared."""

import random
import re

import pytest
from generated import NAMES, Net, fails_at, made

from bench.faults.kills import content
from gms_fast.generation import Report, filling
from gms_fast.generation.shards import Shards

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["npz", "png"])
def form(request):
    return request.param


def other_device(monkeypatch, by, name):
    """Make a device of this name draw one pixel of sample 13 differently; None is the real one."""
    write = Shards.write

    def written(self, part, pictures, **said):
        if part == 1:
            pictures[5, 0, 2, 3] += by if pictures[5, 0, 2, 3] < 128 else -by
        write(self, part, pictures, **said)

    monkeypatch.setattr(Shards, "write", written)
    if name is not None:
        monkeypatch.setattr(filling, "device_kind", lambda _: name)


def test_pictures_that_are_equal_are_told_so_and_nothing_is_written(tmp_path, form):
    made(tmp_path, form=form)
    before = content(tmp_path)
    assert made(tmp_path, form=form, verify=1.0) == Report(compared=21)
    assert made(tmp_path, form=form, verify=1) == Report(compared=21)
    assert content(tmp_path) == before


@pytest.mark.parametrize(("share", "batches"), [(0.001, 1), (0.17, 2), (0.5, 3), (0.9, 6)])
def test_share_of_batches_is_drawn_at_random(tmp_path, monkeypatch, share, batches):
    made(tmp_path)
    found = set()
    for seed in range(20):
        calls = []
        monkeypatch.setattr(random, "SystemRandom", lambda seed=seed: random.Random(seed))
        found.add(made(tmp_path, Net(seen=calls.append), verify=share).compared)
        assert len(calls) == 3 * batches
    assert found == ({21} if batches == 6 else {4 * batches, 4 * batches - 3})  # the last batch has one sample


def test_state_of_random_is_not_that_of_the_choice(tmp_path):
    """Check that the user's seed neither fixes the choice of batches nor is consumed by it."""
    made(tmp_path)
    random.seed(3)
    before = random.getstate()
    made(tmp_path, verify=0.5)
    assert random.getstate() == before


def test_pictures_of_another_device_that_differ_are_counted(tmp_path, monkeypatch, form):
    with monkeypatch.context() as patch:
        other_device(patch, 9, "another device")
        made(tmp_path, form=form)
    report = made(tmp_path, form=form, verify=1)
    assert report == Report(compared=21, differing=pytest.approx(1 / (21 * 16)), largest=9)


def test_pictures_of_a_device_of_this_kind_that_differ_are_an_error(tmp_path, monkeypatch, form):
    with monkeypatch.context() as patch:
        other_device(patch, 9, None)
        made(tmp_path, form=form)
    said = f"{NAMES[1]}.* differs from the images drawn here by up to 9 grey levels, in samples 12 to 15"
    with pytest.raises(ValueError, match=said):
        made(tmp_path, form=form, verify=1)


def test_broken_shard_is_named_and_stays(tmp_path):
    made(tmp_path)
    shard = tmp_path / f"{NAMES[1]}.npz"
    shard.write_bytes(shard.read_bytes()[:99])
    before = content(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"shard {shard} is broken")):
        made(tmp_path, verify=1)
    assert content(tmp_path) == before


def test_run_that_is_not_finished_is_compared_as_far_as_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="broken network"):
        made(tmp_path, Net(seen=fails_at(7)))
    assert made(tmp_path, verify=1).compared == 8
    assert made(tmp_path, verify=1, shard="1/3").compared == 8
    with pytest.raises(FileNotFoundError, match=f"out: {tmp_path} holds no shards to compare"):
        made(tmp_path, verify=1, shard="2/3")


@pytest.mark.parametrize("there", [False, True])
def test_folder_without_a_run_is_named_and_not_made(tmp_path, there):
    out = tmp_path / "x"
    if there:
        out.mkdir()
    with pytest.raises(FileNotFoundError, match=f"out: {out} holds no run.json: nothing was generated there"):
        made(out, verify=1)
    assert not there or list(out.iterdir()) == []
    assert out.exists() == there


def test_another_run_is_refused(tmp_path):
    made(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)holds another run.*seed: 0 there, 1 asked for"):
        made(tmp_path, verify=1, seed=1)


def test_shards_that_were_drawn_with_fewer_rows_are_compared_in_the_same_way(tmp_path):
    rows = []

    def small(most):
        def seen(count):
            rows.append(count)
            if count > most:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

        return seen

    made(tmp_path, Net(seen=small(2)))
    rows.clear()
    assert made(tmp_path, Net(seen=rows.append), verify=1).compared == 21
    assert set(rows) == {2}
