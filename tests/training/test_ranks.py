"""Two ranks over gloo on this machine: one result, one writer and one end."""

import re
import threading
import time

import pytest
import torch
import two_ranks
from ended_runs import interrupt_at
from torch import distributed
from two_ranks import loader, train

from gms_fast.storage import checkpoint
from gms_fast.training import ranks
from gms_fast.training.ranks import Ranks

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow(45)]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Folder of the runs of two ranks, and status and output of each rank by scene."""
    folder = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 20)
        with pytest.raises(KeyboardInterrupt):
            train(folder / "one first", checkpoint_every=8)
    return folder, two_ranks.played(("together", "first_killed", "second_killed", "signalled", "counted"), folder)


@pytest.fixture(scope="module")
def together(played):
    """Folder, and output of the ranks, for a scene that ran to the end."""
    folder, found = played
    assert [status for status, *_ in found["together"]] == [0, 0], found
    return folder, [out for _, out, _ in found["together"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Result of an uninterrupted run of one process."""
    return train(tmp_path_factory.mktemp("whole"))


def assert_near(got, want):
    assert got.keys() == want.keys()
    for name, weight in want.items():
        torch.testing.assert_close(got[name], weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("even", {}),
        ("odd", {"batch_size": 7}),
        ("loader", {"data": loader}),  # of batches of 7 and 3 rows
        ("complex", {"head": "complex", "flips": True}),
        ("continued", {}),  # after 16 steps of one
        ("parts", {"batch_size": 7}),  # of 2 and 1 rows, of 2 and 2
    ],
)
def test_two_ranks_end_as_one_process_does(tmp_path, together, name, options):
    folder, _ = together
    first, second = (torch.load(folder / f"weights {rank}.pt")[name] for rank in (0, 1))
    assert all(torch.equal(first[n], second[n]) for n in first)
    options = {key: value() if callable(value) else value for key, value in options.items()}
    alone = train(tmp_path, **options)
    assert_near(first, alone)
    start = train(tmp_path / "start", steps=1, **{**options, "lr": 1e-9})
    assert max(float((alone[n] - start[n]).abs().max()) for n in alone) > 0.05  # the weights have changed


def test_noise_network_of_two_ranks_answers_as_that_of_one(tmp_path, together):
    folder, _ = together
    first, second = (torch.load(folder / f"weights {rank}.pt")["noise"] for rank in (0, 1))
    assert torch.equal(first["e1"], second["e1"])
    assert_near(first, {"e1": two_ranks.noise_network(tmp_path)})


def test_gradients_go_round_once_a_step(played):
    _, found = played
    assert [(status, out) for status, out, _ in found["counted"]] == [(0, "5\n"), (0, "5\n")]


def test_three_ranks_of_which_one_was_killed_go_on_to_the_same_bits(tmp_path):
    found = two_ranks.played(("uninterrupted", "second_killed", "killed_and_gone_on"), tmp_path, count=3)
    assert [status for status, *_ in found["second_killed"]] == [1, -9, 1]
    for rank in range(3):
        whole, gone_on = (torch.load(tmp_path / f"{name} {rank}.pt") for name in ("uninterrupted", "gone on"))
        assert all(torch.equal(gone_on[name], weight) for name, weight in whole.items())


def test_ranks_that_lost_another_say_so_in_a_line(played):
    _, found = played
    for scene, left in (("first_killed", 1), ("second_killed", 0)):
        _, _, words = found[scene][left]
        assert re.search(r"ConnectionError\('another rank has ended, or cannot be reached: [^\n]*'\)\n$", words)


def test_first_rank_alone_writes(together):
    folder, _ = together
    for name in ("even", "odd", "loader", "complex", "one first"):
        assert {path.name for path in (folder / name).iterdir()} == {"checkpoint.pt", "curve.csv"}
        assert checkpoint.read(folder / name / "checkpoint.pt")["step"] == 50
    one = [line.split(",")[1] for line in (folder / "even" / "curve.csv").read_text().splitlines()[1:]]
    assert len(one) == 1


def test_curve_is_that_of_all_rows(tmp_path, together):
    folder, _ = together
    train(tmp_path, batch_size=7)
    one, two = (checkpoint.read(path / "checkpoint.pt")["smooth"] for path in (tmp_path, folder / "odd"))
    assert two == pytest.approx(one, rel=1e-5)


def test_error_of_the_first_rank_reaches_both(together):
    _, said = together
    for words in said:
        assert "made with another configuration; choose another folder" in words
        assert "already holds a training run; resume it or choose another folder" in words
        assert "still a group of 2" in words


def test_batch_smaller_than_the_ranks_is_refused(together):
    _, said = together
    for words in said:
        assert "batches must have at least 2 rows, one for each rank: got 1" in words


@pytest.mark.parametrize(("scene", "which"), [("first_killed", 0), ("second_killed", 1)])
def test_run_of_two_killed_goes_on_as_one_and_ends_as_an_uninterrupted_one(played, whole, scene, which):
    folder, found = played
    statuses = [status for status, *_ in found[scene]]
    assert statuses[which] == -9
    assert statuses[1 - which] == 1  # the other rank did not wait for ever
    out = folder / f"killed {which}"
    assert checkpoint.read(out / "checkpoint.pt")["step"] == 16
    assert_near(train(out), whole)


def test_signal_to_one_rank_ends_both_after_a_checkpoint(played, whole):
    folder, found = played
    assert [status for status, *_ in found["signalled"]] == [0, 0], found["signalled"]
    words = [out.split() for _, out, _ in found["signalled"]]
    assert words == [["Terminated", "KeyboardInterrupt"], ["KeyboardInterrupt", "Terminated"]]
    for which in (0, 1):
        out = folder / f"signalled {which}"
        assert checkpoint.read(out / "checkpoint.pt")["step"] == 21
        assert {path.name for path in out.iterdir()} == {"checkpoint.pt", "curve.csv"}
        assert_near(train(out), whole)


# --- one process ---


def test_store_that_says_where_ended_ranks_were_is_not_believed():
    """A store like that of torchrun after --max-restarts."""
    store, found = distributed.HashStore(), {}
    for rank in (0, 1):
        store.set(f"gms_fast/{rank}", f"gms_fast/{rank}/old")
        store.set(f"gms_fast/0/old gms_fast/1/old gms_fast/{rank}/old", "seen")

    def start(rank):
        found[rank] = ranks._fresh(store, rank, 2)
        found[rank].set(f"from {rank}", "here")

    threads = [threading.Thread(target=start, args=(rank,)) for rank in (0, 1)]
    threads[0].start()
    time.sleep(0.1)
    assert not found  # rank 1 is missing, whatever the store says
    threads[1].start()
    for thread in threads:
        thread.join()
    assert found[0].get("from 1") == found[1].get("from 0") == b"here"


def test_ranks_that_stay_away_are_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(ranks, "_PATIENCE", 0.1)
    with pytest.raises(ConnectionError, match=r"2 ranks must start within 0\.1 s of each other: some are missing"):
        ranks._fresh(distributed.HashStore(), 0, 2)


def test_errors_that_are_not_of_the_group_stay_what_they_are():
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2$"), ranks.telling():
        raise RuntimeError("mat1 and mat2")
    with pytest.raises(ConnectionError, match=r"reached: Connection closed by peer \[::1\]$"), ranks.telling():
        raise RuntimeError("[/a/gloo/pair.cc:537] Connection closed by peer [::1]. Perhaps.\nMore")


@pytest.mark.parametrize(("total", "count"), [(2, 2), (7, 2), (7, 3), (64, 5)])
def test_rows_of_all_ranks_are_the_batch(total, count):
    some, found = Ranks(), []
    for some.rank in range(count):
        some.count = count
        found += range(total)[some.rows(total)]
        assert abs(len(range(total)[some.rows(total)]) - total / count) < 1
    assert found == [*range(total)]


def test_process_alone_is_the_first_of_one():
    alone = Ranks()
    assert (alone.rank, alone.count, alone.first) == (0, 1, True)
    assert alone.by_first(lambda: 7) == 7
    assert torch.equal(alone.total(torch.ones(2)), torch.ones(2))
