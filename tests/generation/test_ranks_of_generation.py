"""Processes that share a folder: same bytes with late, stopped, killed and slow ones."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import warnings

import pytest
from generated import Net, appears, forked, made, statuses

from bench.faults import kills
from gms_fast import io
from gms_fast.generation import queue
from gms_fast.storage import atomic, claims

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform == "win32", reason="processes are forked"),
]
N, SHARDS = 61, 8  # the last shard has five samples
SLOW = 0.008  # seconds per network call, so that no process finishes before others start


def drawn(out, form="npz", seen=lambda rows: time.sleep(SLOW), **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about broken shards and idle ranks
        return made(out, Net(seen=seen), form=form, n=N, **options)


def content(folder):
    """Visible files; dead processes may leave locks and temporary files."""
    return {name: data for name, data in kills.content(folder).items() if name.split("/")[0] in atomic.visible(folder)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Content of runs by one process, by form."""
    found = {}
    for form in ("npz", "png"):
        folder = tmp_path_factory.mktemp(form)
        drawn(folder, form, seen=lambda rows: None)
        found[form] = content(folder)
    return found


def begun(folder, ranks, act, **environment):
    """Children that start `act` at once, for the given ranks (all or some)."""
    folder.mkdir(exist_ok=True)

    def one(rank):
        (folder / f"begun {rank}").touch()
        appears(*(folder / f"begun {other}" for other in ranks))
        (folder / f"said {rank}").write_text(json.dumps(act(rank)))

    return [forked(lambda rank=rank: one(rank), RANK=rank, WORLD_SIZE=len(ranks), **environment) for rank in ranks]


def said(folder, ranks):
    return [json.loads((folder / f"said {rank}").read_text()) for rank in ranks]


def shards(out):
    return [name for name in os.listdir(out) if name[0].isdigit()] if out.exists() else []


def waited_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.002)


def killed(children, number=signal.SIGKILL):
    for child in children:
        os.kill(child, number)
    return statuses(children)


@pytest.mark.parametrize("form", ["npz", "png"])
@pytest.mark.parametrize("count", [2, 5])
def test_many_processes_make_what_one_does(tmp_path, whole, form, count):
    out, ranks = tmp_path / "out", range(count)
    children = begun(tmp_path / "x", ranks, lambda rank: drawn(out, form)._asdict())
    assert statuses(children) == [0] * count
    assert content(out) == whole[form]
    reports = said(tmp_path / "x", ranks)
    assert sum(report["drawn"] for report in reports) == N  # no sample twice
    assert max(report["drawn"] for report in reports) < N  # no process drew all
    assert sorted(os.listdir(out)) == sorted({name.split("/")[0] for name in whole[form]})


def test_processes_of_a_group_make_what_one_does(tmp_path, whole):
    """Use a gloo group, as a script under torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def grouped(rank):
        from torch import distributed

        distributed.init_process_group("gloo")
        found = drawn(tmp_path / "out")._asdict()
        distributed.destroy_process_group()
        return found

    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    assert statuses(begun(tmp_path / "x", range(5), grouped, **group)) == [0] * 5
    assert content(tmp_path / "out") == whole["npz"]


def test_processes_of_several_terminals_share_the_work(tmp_path, whole):
    """Each process takes itself for the only one."""
    children = begun(tmp_path / "x", range(3), lambda rank: drawn(tmp_path / "out")._asdict())
    assert statuses(children) == [0] * 3
    alone = [forked(lambda: drawn(tmp_path / "alone"), RANK=0, WORLD_SIZE=1) for _ in range(3)]
    assert statuses(alone) == [0] * 3
    assert content(tmp_path / "out") == content(tmp_path / "alone") == whole["npz"]


@pytest.mark.parametrize("form", ["npz", "png"])
def test_what_a_killed_process_had_begun_is_done_by_the_others(tmp_path, whole, form):
    out = tmp_path / "out"
    children = begun(tmp_path / "x", range(3), lambda rank: drawn(out, form)._asdict())
    waited_for(lambda: len(shards(out)) >= 2)
    assert killed(children[:2]) == [-9, -9]
    assert statuses(children[2:]) == [0]
    assert content(out) == whole[form]
    assert "claims" not in os.listdir(out)


def test_run_that_was_killed_goes_on_with_other_numbers_of_processes(tmp_path, whole):
    out, done = tmp_path / "out", 0
    for round_, count in enumerate((3, 1, 5, 2)):
        children = begun(tmp_path / f"x{round_}", range(count), lambda rank: drawn(out)._asdict())
        waited_for(lambda done=done: len(shards(out)) > done)
        killed(children)
        assert len(shards(out)) > done
        done = len(shards(out))
        if done == SHARDS:
            break
    drawn(out)
    assert content(out) == whole["npz"]


def test_interrupted_process_leaves_its_part_to_the_others_at_once(tmp_path, whole):
    out = tmp_path / "out"

    def one(rank):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return drawn(out)._asdict()

    children = begun(tmp_path / "x", range(2), one)
    waited_for(lambda: len(shards(out)) >= 1)
    assert killed(children[:1], signal.SIGINT) == [1]
    assert statuses(children[1:]) == [0]
    assert content(out) == whole["npz"]


def test_part_of_a_process_that_is_stopped_is_done_by_another(tmp_path, whole, monkeypatch):
    """The stopped process holds its lock; later it writes the same bytes or nothing."""
    monkeypatch.setattr(queue, "LEAST", 0.1)
    monkeypatch.setattr(queue, "_POLL", (0.01, 0.05))
    out = tmp_path / "out"
    children = begun(tmp_path / "x", range(2), lambda rank: drawn(out)._asdict())
    waited_for(lambda: (out / "claims").exists() and len(os.listdir(out / "claims")) == 2)
    os.kill(children[0], signal.SIGSTOP)
    try:
        assert statuses(children[1:]) == [0]
        assert content(out).items() >= whole["npz"].items()
    finally:
        os.kill(children[0], signal.SIGCONT)
    assert statuses(children[:1]) == [0]
    assert content(out) == whole["npz"]


def test_processes_that_find_the_same_shards_broken_mend_them(tmp_path, whole):
    out = tmp_path / "out"
    for form in ("npz", "png"):
        drawn(out / form, form)
        for name in shards(out / form):
            path = out / form / name / "made.json" if form == "png" else out / form / name
            path.write_bytes(path.read_bytes()[:-9])
        children = [forked(lambda form=form: drawn(out / form, form), RANK=0, WORLD_SIZE=1) for _ in range(3)]
        assert statuses(children) == [0] * 3
        assert content(out / form) == whole[form]


def test_two_runs_on_one_folder_at_once_are_told_apart(tmp_path, whole):
    """Expect one to be refused, naming the difference, and the other to be undisturbed."""
    out = tmp_path / "out"

    def one(rank):
        try:
            drawn(out, seed=rank)
        except ValueError as error:
            return str(error)

    assert statuses(begun(tmp_path / "x", range(2), one)) == [0, 0]
    words = said(tmp_path / "x", range(2))
    [refused] = [word for word in words if word]
    seed = 1 - words.index(refused)
    assert "holds another run; choose another folder" in refused
    assert f"seed: {seed} there, {1 - seed} asked for" in refused
    drawn(tmp_path / "alone", seed=seed)
    assert content(out) == content(tmp_path / "alone")


@pytest.mark.parametrize("form", ["npz", "png"])
@pytest.mark.parametrize("seed", range(3))
def test_processes_killed_at_random_moments_end_with_the_bytes_of_one(tmp_path, whole, monkeypatch, form, seed):
    monkeypatch.setattr(claims, "EXPIRES", 1.0)  # a claim without an owner, since its process was killed
    chance, out, children = random.Random(seed), tmp_path / "out", []
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        while len(children) < 3:
            rank, count = chance.randrange(3), 3
            children.append(forked(lambda: drawn(out, form, seen=lambda rows: None), RANK=rank, WORLD_SIZE=count))
        time.sleep(chance.uniform(0, 0.06))
        child = children.pop(chance.randrange(3))
        try:
            os.kill(child, signal.SIGKILL)
        finally:
            assert statuses([child])[0] in (0, -9)
        if len(shards(out)) == SHARDS and chance.random() < 0.5:
            kept = chance.choice(shards(out))
            path = out / kept / "made.json" if form == "png" else out / kept
            if path.exists():
                path.unlink()
    assert set(statuses(children)) <= {0}
    drawn(out, form)
    assert content(out) == whole[form]


# --- torchrun ---


def torchrun(count, *arguments):
    """Launcher of the command in several processes, in a process group of its own."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "gms_fast", "--")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launch, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow(30)
def test_torchrun_makes_what_one_process_does_and_goes_on_with_more(tmp_path):
    from gms_fast.cli import main

    io.save(kills.tiny(), tmp_path / "m")
    command = [
        *("generate", "--model", tmp_path / "m", "--n", 60, "--batch-size", 2, "--shard-size", 4),
        *("--steps", 50, "--device", "cpu", "--out"),
    ]
    out = tmp_path / "out"
    first = torchrun(2, *command, out)
    waited_for(lambda: len(shards(out)) >= 2)
    first.terminate()  # it forwards the signal to its processes
    _, errors = first.communicate(timeout=120)
    assert "gms-fast: terminated; the same command continues from there" in errors
    assert 2 <= len(shards(out)) < 15
    assert sorted(os.listdir(out)) == sorted([*shards(out), "run.json"])
    second = torchrun(3, *command, out)
    words, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    [line] = [line for line in words.splitlines() if "drawn here" in line]
    assert line.startswith("60 images: ")
    assert main([str(argument) for argument in (*command, tmp_path / "one")]) == 0
    assert content(out) == content(tmp_path / "one")
    assert main([str(argument) for argument in (*command, out, "--verify", "0.1")]) == 0
