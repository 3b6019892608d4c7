"""Filling of a folder: broken shards, interruptions, failures, and files of other processes."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time
import warnings

import pytest
import torch
from generated import NAMES, Net, fails_at, forked, made, statuses
from tqdm import tqdm

from bench.faults.kills import content
from gms_fast.data import load_image
from gms_fast.generation import Report, drawing, filling, shards
from gms_fast.images import save_image
from gms_fast.storage import atomic, claims

pytestmark = pytest.mark.usefixtures("one_thread")
FORMS = ("npz", "png")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Content of complete runs, by form."""
    found = {}
    for form in FORMS:
        folder = tmp_path_factory.mktemp(form)
        made(folder, form=form)
        found[form] = content(folder)
    return found


def first_shard(folder):
    return next(path for path in folder.iterdir() if path.name.startswith(NAMES[0]))


def spoiled(folder):
    """Break the first shard of a run."""
    shard = first_shard(folder)
    if shard.is_dir():
        (shard / "000000003.png").write_bytes((shard / "000000004.png").read_bytes())
    else:
        shard.write_bytes(shard.read_bytes()[:-300])
    return shard


# --- broken shards ---


@pytest.mark.parametrize("form", FORMS)
def test_broken_shard_is_made_anew_with_a_warning_that_names_it_and_the_caller(tmp_path, whole, form):
    made(tmp_path, form=form)
    shard = spoiled(tmp_path)
    with pytest.warns(UserWarning, match=f"shard {shard} is broken: .*; it will be drawn again") as told:
        assert made(tmp_path, form=form) == Report(drawn=8, there=13, broken=1)
    assert [os.path.basename(warning.filename) for warning in told] == ["generated.py"]
    assert content(tmp_path) == whole[form]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made(tmp_path, form=form) == Report(there=21)


@pytest.mark.parametrize("form", FORMS)
def test_shard_of_another_run_is_refused_and_stays(tmp_path, form):
    for seed in (0, 1):
        made(tmp_path / str(seed), form=form, seed=seed)
    mine, other = (first_shard(tmp_path / seed) for seed in "01")
    shutil.rmtree(mine) if mine.is_dir() else mine.unlink()
    other.rename(mine)
    before = content(tmp_path)
    with pytest.raises(ValueError, match=rf"shard {mine} belongs to the run \w{{16}}, not to \w{{16}}"):
        made(tmp_path / "0", form=form)
    assert content(tmp_path) == before


def test_shard_that_is_gone_when_it_is_looked_at_is_made_anew(tmp_path, whole, monkeypatch):
    """Let another process of the run remove the broken shard first."""
    made(tmp_path)
    listed = os.listdir

    def once(path):
        names = listed(path)
        (tmp_path / f"{NAMES[0]}.npz").unlink(missing_ok=True)
        return names

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", once)
        patch.setattr(drawing.Drawing, "part", lambda *_: pytest.fail("not drawn yet"))
        with pytest.raises(pytest.fail.Exception, match="not drawn yet"):
            made(tmp_path)
    assert made(tmp_path) == Report(drawn=8, there=13)
    assert content(tmp_path) == whole["npz"]


def test_picture_that_was_saved_again_with_the_same_pixels_is_whole(tmp_path):
    made(tmp_path, form="png")
    path = first_shard(tmp_path) / "000000003.png"
    save_image(load_image(path, 1), path)
    assert made(tmp_path, form="png") == Report(there=21)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_looks_at_a_share_of_what_is_there(tmp_path, monkeypatch, rank):
    made(tmp_path)
    spoiled(tmp_path)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert made(tmp_path).broken == (rank == 0)


# --- early ends ---


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("calls", range(0, 18, 2))
def test_interrupted_run_keeps_what_is_finished_and_goes_on(tmp_path, whole, form, calls):
    """Three network calls per batch, two batches per shard."""
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, Net(seen=fails_at(calls, KeyboardInterrupt)), form=form)
    names = sorted(os.listdir(tmp_path))
    shards = [name.removesuffix(".npz") for name in names if name != "run.json"]
    assert shards == NAMES[: calls // 6]
    assert {name: data for name, data in whole[form].items() if name in content(tmp_path)} == content(tmp_path)
    there = 8 * len(shards)
    assert made(tmp_path, form=form) == Report(drawn=21 - there, there=there)
    assert content(tmp_path) == whole[form]


def test_interrupted_run_has_no_claims(tmp_path):
    seen = []

    def interrupted(rows):
        seen.append(sorted(os.listdir(tmp_path / "claims")))
        if len(seen) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, Net(seen=interrupted))
    assert seen[0] == [NAMES[0]]
    assert NAMES[1] in seen[-1]
    assert sorted(os.listdir(tmp_path)) == [f"{NAMES[0]}.npz", "run.json"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("claims", "writer"))]


# --- progress ---


def test_first_rank_alone_shows_what_is_done(tmp_path, capfd, monkeypatch):
    made(tmp_path, progress=True)
    said = capfd.readouterr().err
    assert "generate" in said
    assert "21/21" in said
    made(tmp_path, progress=True, verify=0.5)
    assert "12/12" in (said := capfd.readouterr().err) or "9/9" in said
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    made(tmp_path, progress=True)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("options", [{}, {"verify": 1.0}])
def test_process_that_shows_nothing_waits_for_no_lock_of_others(tmp_path, options):
    """Forks of one process share tqdm's lock, which a killed fork never releases."""
    made(tmp_path)

    def work():
        tqdm.set_lock(multiprocessing.RLock())
        dead = forked(lambda: tqdm.get_lock().acquire() and os.kill(os.getpid(), signal.SIGKILL))
        assert statuses([dead]) == [-9]
        made(tmp_path, **options)

    assert statuses([forked(work)]) == [0]


# --- failures ---


def full_at(monkeypatch, name):
    """Disk that is full for files of one name."""

    def full(writing):
        def written(path, *rest, **options):
            if name in str(path):
                raise OSError(28, "No space left on device", str(path))
            return writing(path, *rest, **options)

        return written

    for writer in ("writing", "write_inside"):
        monkeypatch.setattr(atomic, writer, full(getattr(atomic, writer)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shard", [0, 1, 2])
def test_full_disk_is_named_and_the_run_goes_on_when_there_is_place(tmp_path, whole, monkeypatch, form, shard):
    with monkeypatch.context() as patch:
        full_at(patch, NAMES[shard])
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/.*{NAMES[shard]}"):
            made(tmp_path, form=form)
    shards = [name.removesuffix(".npz") for name in sorted(os.listdir(tmp_path)) if name != "run.json"]
    assert shards == NAMES[:shard]
    assert made(tmp_path, form=form).there == 8 * shard
    assert content(tmp_path) == whole[form]


def test_disk_that_is_full_from_the_start_leaves_a_folder_that_can_be_used(tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        full_at(patch, "run.json")
        with pytest.raises(OSError, match=r"No space left on device: '.*run.json'"):
            made(tmp_path)
    assert os.listdir(tmp_path) == []
    made(tmp_path)
    assert content(tmp_path) == whole["npz"]


@pytest.mark.parametrize("call", [0, 4, 8, 17])
def test_folder_that_vanishes_is_named_and_can_be_made_again(tmp_path, whole, call):
    out, calls = tmp_path / "out", iter(range(call))

    def vanish(rows):
        if next(calls, None) is None and out.exists():
            out.rename(tmp_path / "away")
            shutil.rmtree(tmp_path / "away")

    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{out}"):
        made(out, Net(seen=vanish))
    assert not out.exists()
    made(out)
    assert content(out) == whole["npz"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_folder_that_cannot_be_written_to_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match=str(tmp_path)):
            made(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_error_of_the_network_leaves_what_is_finished(tmp_path, whole):
    with pytest.raises(RuntimeError, match="broken network"):
        made(tmp_path, Net(seen=fails_at(13)))
    assert made(tmp_path) == Report(drawn=5, there=16)
    assert content(tmp_path) == whole["npz"]


def test_shard_says_how_it_was_drawn_whatever_comes_before_it_is_written(tmp_path, monkeypatch):
    """Memory runs out for the second shard while the first waits to be written."""
    out, calls = threading.Event(), []

    class Late(filling.Writer):
        def __init__(self, write):
            super().__init__(lambda *arguments: (out.wait(30), write(*arguments)))

    def seen(rows):
        calls.append(rows)
        if len(calls) > 8 and rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if rows == 2:
            out.set()

    monkeypatch.setattr(filling, "Writer", Late)
    made(tmp_path, Net(seen=seen))
    said = [b"network_rows" in (tmp_path / f"{name}.npz").read_bytes() for name in NAMES]
    assert said == [False, True, True]


# --- leftovers of other processes ---


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("when", ["start", "end"])
def test_scratch_of_killed_writers_is_gone_at_the_end_though_their_shards_are_there(tmp_path, whole, form, when):
    """Claims of dead processes are released once their shards exist."""
    made(tmp_path, form=form)
    (tmp_path / f".{NAMES[1]}.0123abcd.partial").mkdir()
    (tmp_path / f".{NAMES[1]}.0123abcd.partial" / "000000008.png").touch()
    (tmp_path / f".{NAMES[0]}.npz.0123abcd.partial").touch()
    if when == "end":
        (tmp_path / "claims").mkdir()
        (tmp_path / "claims" / NAMES[1]).write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert made(tmp_path, form=form).there == 21
    assert sorted(os.listdir(tmp_path)) == sorted({name.split("/")[0] for name in whole[form]})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("when", ["before", "during"])
def test_shard_that_a_quick_process_has_written_is_not_written_again(tmp_path, whole, monkeypatch, form, when):
    """Expect no error, even if that process removed our temporary files."""
    made(tmp_path / "other", form=form)
    kind, wrote, calls = shards.FORMS[form], [], iter(range(8))
    write, name = kind.write, f"{NAMES[1]}{kind.suffix}"

    def finish():
        os.rename(tmp_path / "other" / name, tmp_path / "out" / name)

    def late(self, part, pictures, **said):
        wrote.append(part)
        if part == 1:
            finish()
            raise FileNotFoundError(2, "No such file or directory")
        write(self, part, pictures, **said)

    def seen(rows):
        if when == "before" and next(calls, None) == 7:
            finish()

    monkeypatch.setattr(kind, "write", late)
    assert made(tmp_path / "out", Net(seen=seen), form=form).drawn == 21
    assert wrote == ([0, 2] if when == "before" else [0, 1, 2])
    assert content(tmp_path / "out") == whole[form]


@pytest.mark.parametrize("mtime", [0, 4e9], ids=["1970", "future"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_dead_claim_of_a_machine_whose_clock_is_wrong_holds_nothing_up(tmp_path, whole, monkeypatch, mtime, number):
    monkeypatch.setattr(claims, "EXPIRES", 0.3)
    (tmp_path / "claims").mkdir()
    claim = tmp_path / "claims" / NAMES[number]
    claim.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(claim, (mtime, mtime))
    (tmp_path / "run.json").write_bytes(whole["npz"]["run.json"])
    start = time.monotonic()
    assert made(tmp_path).drawn == 21
    assert 0.3 <= time.monotonic() - start < 20
    assert content(tmp_path) == whole["npz"]
    assert not (tmp_path / "claims").exists()


def test_claims_that_the_dead_left_on_finished_shards_are_swept(tmp_path, whole):
    made(tmp_path)
    for host in ("elsewhere", socket.gethostname()):
        (tmp_path / "claims").mkdir()
        (tmp_path / "claims" / NAMES[1]).write_text(json.dumps({"host": host, "pid": 1}))
        assert made(tmp_path).there == 21
        assert content(tmp_path) == whole["npz"]


def test_shard_that_another_process_finishes_meanwhile_is_not_drawn(tmp_path, whole):
    def other(rows):
        (tmp_path / f"{NAMES[2]}.npz").write_bytes(whole["npz"][f"{NAMES[2]}.npz"])

    assert made(tmp_path, Net(seen=other)).drawn == 16
    assert content(tmp_path) == whole["npz"]


@pytest.mark.parametrize(("rank", "world"), [(3, 4), (4, 5)])
def test_more_ranks_than_shards_are_told_so_and_change_nothing(tmp_path, whole, monkeypatch, rank, world):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    said = f"there are only 3 shards for {world} ranks: rank {rank} has nothing to draw unless another rank fails"
    with pytest.warns(UserWarning, match=said) as told:
        made(tmp_path)
    assert [os.path.basename(warning.filename) for warning in told] == ["generated.py"]
    assert content(tmp_path) == whole["npz"]
