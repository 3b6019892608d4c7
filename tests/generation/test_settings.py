"""Settings of a run: their file, and comparison with another run."""

import json
import os
import time

import pytest
import torch
from generated import appears, forked, made, statuses

import gms_fast
from bench.faults.kills import content
from gms_fast import solvers
from gms_fast.generation import settings
from gms_fast.generation.settings import of_solver

pytestmark = pytest.mark.usefixtures("one_thread")


# --- solvers ---


def table(value):
    return solvers.GGDMTable.of(solvers.build("ddim"), gms_fast.schedules.build("linear"), [900.0 + value, 400.0])


def test_solvers_are_told_by_their_text_or_their_tables():
    assert of_solver(solvers.build("er-sde:order=2")) == "er-sde:order=2"
    one, same, other = (json.dumps(of_solver(solvers.GGDM(table(value)))) for value in (0, 0, 1))
    assert one == same != other


# --- the file ---


def asked(out, **options):
    made(out, **options)
    return json.loads((out / "run.json").read_text())


def test_file_says_what_the_pictures_depend_on(tmp_path):
    found = asked(tmp_path)
    assert found["format"] == settings.FORMAT
    assert (found["n"], found["batch_size"], found["shard_size"], found["seed"]) == (21, 4, 8, 0)
    assert (found["form"], found["solver"], found["dtype"]) == ("npz", "ddpm", "torch.float32")
    assert found["pictures"] == [1, 4, 4]
    assert len(found["times"]) == 3
    assert settings.stored(tmp_path) == found


def test_files_are_equal_whoever_writes_them(tmp_path):
    assert asked(tmp_path / "a") == asked(tmp_path / "b")
    assert (tmp_path / "a" / "run.json").read_bytes() == (tmp_path / "b" / "run.json").read_bytes()


def test_fingerprint_goes_by_every_setting_and_not_by_their_order(tmp_path):
    found = asked(tmp_path)
    whole = settings.fingerprint(found)
    assert settings.fingerprint(dict(reversed(found.items()))) == whole
    assert len({settings.fingerprint({**found, key: "other"}) for key in found} | {whole}) == len(found) + 1


def condition(last):
    values = torch.zeros(21)
    values[20] = last
    return {"brightness": values}


def by_turns(count):
    return lambda index: {"brightness": (index % count) / 10}


def test_conditions_are_told_apart_by_every_row(tmp_path):
    """Change rows outside the first batch too."""
    made(tmp_path / "tensor", condition=condition(0.0))
    made(tmp_path / "tensor", condition=condition(0.0))
    with pytest.raises(ValueError, match="condition: "):
        made(tmp_path / "tensor", condition=condition(1.0))
    made(tmp_path / "turns", condition=by_turns(5))
    made(tmp_path / "turns", condition=by_turns(5))
    with pytest.raises(ValueError, match="condition: "):
        made(tmp_path / "turns", condition=by_turns(7))


DAMAGED = {
    "empty": b"",
    "half": b'{"format": "gms_fast generation 1", "n": 2',
    "no JSON": b"precious",
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "nothing": b"{}",
    "another format": b'{"format": "gms_fast generation 0", "form": "npz", "n": 1, "batch_size": 1, "shard_size": 1}',
    "another form": b'{"format": "gms_fast generation 1", "form": "gif", "n": 1, "batch_size": 1, "shard_size": 1}',
    "no samples": b'{"format": "gms_fast generation 1", "form": "npz", "n": 0, "batch_size": 1, "shard_size": 1}',
    "a key twice": b'{"n": 1, "n": 2}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("how", DAMAGED)
@pytest.mark.parametrize("verify", [None, 1.0])
def test_damaged_file_is_named_and_stays(tmp_path, how, verify):
    (tmp_path / "run.json").write_bytes(DAMAGED[how])
    with pytest.raises(ValueError, match=f"{tmp_path}/run.json does not contain the settings of a run: ") as error:
        made(tmp_path, verify=verify)
    assert "\n" not in str(error.value)
    assert content(tmp_path) == {"run.json": DAMAGED[how]}


def test_folder_in_place_of_the_file_is_named(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"run\.json"):
        made(tmp_path)


def test_file_of_other_settings_is_refused_by_their_names(tmp_path):
    found = asked(tmp_path)
    stored = {**{key: value for key, value in found.items() if key != "seed"}, "colour": "red"}
    (tmp_path / "run.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"(?s)  colour: 'red' there, None asked for.*  seed: None there, 0 asked for"):
        made(tmp_path)


def test_processes_that_begin_at_once_make_one_file(tmp_path):
    def begin(rank):
        (tmp_path / f"begun {rank}").touch()
        appears(*(tmp_path / f"begun {other}" for other in range(4)))
        found = settings.settled(tmp_path / "out", lambda: {**made_of, "who": rank})
        (tmp_path / f"found {rank}").write_text(json.dumps(found))

    made_of = asked(tmp_path / "like")
    assert statuses([forked(lambda rank=rank: begin(rank)) for rank in range(4)]) == [0] * 4
    found = [(tmp_path / f"found {rank}").read_text() for rank in range(4)]
    assert len(set(found)) == 1
    assert os.listdir(tmp_path / "out") == ["run.json"]


def test_process_that_never_ends_to_make_the_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "WAIT", 0.2)
    start = time.monotonic()
    with (
        settings.locked_folder(tmp_path),
        pytest.raises(BlockingIOError, match=f"{tmp_path} is in use by process {os.getpid()} on "),
    ):
        made(tmp_path)
    assert 0.2 <= time.monotonic() - start < 20
    made(tmp_path)


def test_folder_that_processes_of_a_vanished_run_made_anew_is_taken(tmp_path):
    out = tmp_path / "out"
    for name in (settings.CLAIMS, settings.MEASURED):
        (out / name).mkdir(parents=True)
    made(out)
    (out / settings.FILE).unlink()
    with pytest.raises(FileExistsError, match=r"is not empty and holds no run\.json"):
        made(out)  # shards are there now
