"""The driver of the fault tests: it counts cases, resumes, and fails when a case did."""

import itertools
import json
import sys

import pytest

from bench.faults import every_kind


@pytest.fixture
def odd(monkeypatch):
    """Add a part whose odd cases fail."""

    def part(seed, first):
        return itertools.count(first), lambda number: f"{number} is odd" if number % 2 else None

    monkeypatch.setitem(every_kind.PARTS, "ops", part)


def run(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["every_kind", "--parts", "ops", *map(str, options)])
    with pytest.raises(SystemExit) as ended:
        every_kind.main()
    return ended.value.code


def test_cases_go_on_where_they_were_and_failures_are_kept(odd, monkeypatch, tmp_path, capsys):
    out = tmp_path / "f.json"
    assert run(monkeypatch, "--count", 1, "--out", out) == 0
    assert run(monkeypatch, "--count", 3, "--out", out) == 1
    record = json.loads(out.read_text())["ops"]
    assert (record["next"], record["failed"], record["faults"]) == (4, 2, ["1 is odd", "3 is odd"])
    assert "ops 1: 1 is odd" in capsys.readouterr().out
    assert run(monkeypatch, "--seed", 7, "--out", out) == f"--seed must be 0, that of {out}: got 7"


def test_one_case_is_run_again(odd, monkeypatch, capsys):
    assert run(monkeypatch, "--first", 41, "--count", 1) == 1
    assert "ops 41: 41 is odd" in capsys.readouterr().out


def test_an_end_from_outside_keeps_the_count(monkeypatch, tmp_path):
    def check(number):
        if number == 5:
            raise KeyboardInterrupt
        return

    monkeypatch.setitem(every_kind.PARTS, "ops", lambda seed, first: (itertools.count(first), check))
    monkeypatch.setattr(sys, "argv", ["every_kind", "--parts", "ops", "--out", str(tmp_path / "f.json")])
    with pytest.raises(KeyboardInterrupt):
        every_kind.main()
    assert json.loads((tmp_path / "f.json").read_text())["ops"]["next"] == 5


@pytest.mark.parametrize("part", ["ops", "files"])
def test_parts_run_by_the_driver(part, monkeypatch, tmp_path):
    cases, check = every_kind.PARTS[part](0, 3)
    assert check(next(cases)) is None


def test_time_ends_a_part(odd, monkeypatch, capsys):
    assert run(monkeypatch, "--minutes", 0) == 0
    assert "ops: 1 cases, 0 failed" in capsys.readouterr().out
