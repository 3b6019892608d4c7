"""Statistics of a run: each part once, by any process, equal to those of the images."""

import numpy as np
import pytest
import torch
from generated import NAMES, SMALL, Net, forked, made, statuses

from gms_fast.generation.measured import Measured
from gms_fast.generation.shards import Cut
from gms_fast.quality import extractors, running
from gms_fast.quality.running import Running
from gms_fast.storage.claims import EXPIRES, Claims

CUT = Cut(21, 8)


def pictures(part):
    return torch.randint(0, 256, (len(CUT[part]), 1, 4, 4), generator=torch.Generator().manual_seed(part)).byte()


def opened(out, features="pixels", run="a run"):
    out.mkdir(exist_ok=True)
    return Measured(out, CUT, run, extractors.load(features))


def assert_same(found, wanted):
    assert found.count == wanted.count
    assert torch.equal(found.index, wanted.index)
    torch.testing.assert_close(found.covariance, wanted.covariance, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-12, atol=1e-12)


def test_statistics_are_those_of_the_pictures(tmp_path):
    made(tmp_path / "a", features="pixels")
    made(tmp_path / "b", features="pixels", form="none")
    wanted = running.measured(str(tmp_path / "a"), extractors.load("pixels"))
    for folder in ("a", "b"):
        found = Running.load(tmp_path / folder / "measured.safetensors")
        assert_same(found, wanted)
        assert found.features == "pixels"
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["measured", "measured.safetensors", "run.json"]


def test_run_is_measured_later_without_being_drawn_again(tmp_path):
    rows = []
    made(tmp_path, Net(seen=rows.append))
    drawn = len(rows)
    report = made(tmp_path, Net(seen=rows.append), features="pixels")
    assert (len(rows), report.drawn, report.there) == (drawn, 0, 21)
    assert Running.load(tmp_path / "measured.safetensors").count == 21


def test_shard_that_was_lost_is_drawn_again_and_not_counted_twice(tmp_path):
    made(tmp_path, features="pixels")
    before = Running.load(tmp_path / "measured.safetensors")
    (tmp_path / f"{NAMES[1]}.npz").unlink()
    assert made(tmp_path, features="pixels").drawn == 8
    assert_same(Running.load(tmp_path / "measured.safetensors"), before)


@pytest.mark.parametrize("ranks", [2, 5])
def test_ranks_count_together_what_one_counts(tmp_path, ranks):
    made(tmp_path / "one", features="pixels", n=50)
    children = [
        forked(lambda: made(tmp_path / "all", features="pixels", n=50), RANK=rank, WORLD_SIZE=ranks)
        for rank in range(ranks)
    ]
    assert statuses(children) == [0] * ranks
    one, several = (Running.load(tmp_path / name / "measured.safetensors") for name in ("one", "all"))
    assert_same(several, one)


def test_file_of_a_process_that_died_is_gone_on_with(tmp_path):
    def begin(part):
        with Claims(tmp_path / "claims") as claims:
            measured = opened(tmp_path)
            measured.begin(claims)
            measured.add(part, pictures(part), lambda: True)
            return measured.own

    first, second = begin(0), begin(1)
    assert first == second
    assert opened(tmp_path).done() == {0, 1}


def test_file_of_a_process_that_lives_is_left_alone(tmp_path):
    with Claims(tmp_path / "claims") as one, Claims(tmp_path / "claims") as other:
        measured, beside = opened(tmp_path), opened(tmp_path)
        measured.begin(one)
        measured.add(0, pictures(0), lambda: True)
        beside.begin(other)
        beside.add(0, pictures(0), lambda: True)  # counted by the other
        beside.add(1, pictures(1), lambda: False)  # taken over by another
        assert beside.done() == {0}
        beside.add(1, pictures(1), lambda: True)
        measured.add(2, pictures(2), lambda: True)
        assert measured.own != beside.own
        assert measured.finish({0, 1, 2})
    assert Running.load(tmp_path / "measured.safetensors").count == 21
    assert not (tmp_path / "claims").exists()


def test_broken_file_is_counted_anew(tmp_path):
    made(tmp_path, features="pixels")
    before = Running.load(tmp_path / "measured.safetensors")
    (file,) = (tmp_path / "measured").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="its parts will be counted again"):
        made(tmp_path, features="pixels")
    assert_same(Running.load(tmp_path / "measured.safetensors"), before)


def test_part_that_two_files_have_counted_is_counted_once(tmp_path):
    """A process may pause while it counts, and another takes over its part."""
    with Claims(tmp_path / "claims") as claims:
        measured = opened(tmp_path)
        measured.begin(claims)
        measured.add(0, pictures(0), lambda: True)
        twice = measured.own.with_name("twice.safetensors")
        twice.write_bytes(measured.own.read_bytes())
        measured.add(2, pictures(2), lambda: True)
        with pytest.warns(UserWarning, match=f"twice.safetensors count {NAMES[0].partition('.')[0]}, as another"):
            assert not measured.finish({0, 1, 2})
        assert not twice.exists()
        assert measured.done() == {0, 2}
        measured.add(1, pictures(1), lambda: True)
        assert measured.finish({0, 1, 2})
    whole = Running.load(tmp_path / "measured.safetensors")
    assert (whole.count, whole.said) == (21, {"run": "a run", "parts": [[0, 2]]})


def test_claim_of_a_machine_that_died_is_gone_at_the_end(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(Claims, "clock", lambda _: now[0])
    with Claims(tmp_path / "claims") as claims:
        (tmp_path / "claims" / "dead.safetensors").write_text('{"host": "elsewhere", "pid": 1}')
        measured = opened(tmp_path)
        measured.begin(claims)
        now[0] += EXPIRES + 1
        measured.end(claims)
    assert not (tmp_path / "claims").exists()


def test_features_are_made_of_fewer_pictures_where_memory_runs_out(tmp_path):
    rows = []

    def small(x):
        rows.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.flatten(1)

    made(tmp_path / "a", features=extractors.Extractor("small", "pixels", lambda _: small))
    made(tmp_path / "b", features="pixels")
    a, b = (Running.load(tmp_path / name / "measured.safetensors") for name in "ab")
    assert_same(a, b)
    assert rows[:8] == [8] * 6 + [4, 2]  # one shard, by 256, 128, .. at a time
    assert set(rows[8:]) <= {1, 2}


def test_other_features_and_other_runs_are_refused(tmp_path):
    made(tmp_path, features="pixels")
    with pytest.raises(ValueError, match=r"features must be those of .*, pixels: got pixels, 3 channels"):
        made(tmp_path, features=extractors.Extractor("pixels", "pixels", lambda _: torch.flatten, channels=3))
    with Claims(tmp_path / "claims") as claims, pytest.raises(ValueError, match="belongs to the run"):
        opened(tmp_path, run="another").begin(claims)


def test_nothing_at_all_is_refused(tmp_path):
    with pytest.raises(ValueError, match='form must not be "none" without features'):
        made(tmp_path / "out", form="none")
    assert not (tmp_path / "out").exists()


def test_features_that_are_not_finite_end_the_run_and_are_not_counted(tmp_path):
    extractor = extractors.Extractor("bad", "bad", lambda _: lambda x: x.flatten(1) * float("nan"))
    with pytest.raises(ValueError, match="features must be finite"):
        made(tmp_path, features=extractor)
    assert list((tmp_path / "measured").iterdir()) == []
    assert np.load(tmp_path / f"{NAMES[0]}.npz")["images"].shape == (SMALL["shard_size"], 1, 4, 4)
