"""Two processes that train together: one result, one writer, and one end, over gloo on this machine."""

import pytest
import torch
import two_ranks
from two_ranks import loader, train

from gms_fast.storage import checkpoint
from gms_fast.training.ranks import Ranks

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow(30)]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The folder of runs of two ranks, and by scene the status and words of each of them."""
    folder = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 20)
        with pytest.raises(KeyboardInterrupt):
            train(folder / "one first", checkpoint_every=8)
    return folder, two_ranks.played(("together", "first_killed", "second_killed", "signalled"), folder)


@pytest.fixture(scope="module")
def together(played):
    """The folder, and the words of ranks that went through to the end."""
    folder, found = played
    assert [status for status, *_ in found["together"]] == [0, 0], found
    return folder, [out for _, out, _ in found["together"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of a run of one process that nothing ends."""
    return train(tmp_path_factory.mktemp("whole"))


def interrupt_at(patch, step):
    from gms_fast.training import loop

    taken = loop._Step.__call__

    def called(self, state, signals):
        if state.step == step:
            raise KeyboardInterrupt
        return taken(self, state, signals)

    patch.setattr(loop._Step, "__call__", called)


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
    assert max(float((alone[n] - start[n]).abs().max()) for n in alone) > 0.05  # it has moved


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
    assert statuses[1 - which] == 1  # it has not waited for ever
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


@pytest.mark.parametrize(("total", "count"), [(2, 2), (7, 2), (7, 3), (64, 5)])
def test_rows_of_all_ranks_are_the_batch(total, count):
    ranks, found = Ranks(), []
    for ranks.rank in range(count):
        ranks.count = count
        found += range(total)[ranks.rows(total)]
        assert abs(len(range(total)[ranks.rows(total)]) - total / count) < 1
    assert found == [*range(total)]


def test_process_alone_is_the_first_of_one():
    ranks = Ranks()
    assert (ranks.rank, ranks.count, ranks.first) == (0, 1, True)
    assert ranks.by_first(lambda: 7) == 7
    assert torch.equal(ranks.total(torch.ones(2)), torch.ones(2))
