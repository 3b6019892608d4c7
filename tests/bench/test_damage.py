"""Damaged files: valid content, or a ValueError that names file and key, within bounds."""

import numpy as np
import pytest

from bench.faults import damage, damage_files

pytestmark = pytest.mark.usefixtures("one_thread")

CASES, GROUPS = 320, 16


@pytest.mark.parametrize("group", range(GROUPS))
def test_damaged_files_are_refused_by_name_or_read_right(group):
    """Run other cases than those behind the figures of docs/faults.md."""
    numbers = range(group, CASES, GROUPS)
    assert [problem for n in numbers if (problem := damage.check(damage.Case(1, n)))] == []


def test_cases_can_be_run_alone(tmp_path):
    case = next(damage.cases(seed=3, first=51))
    assert (case.seed, case.number) == (3, 51)
    found = []
    for name in "ab":
        damage.shutil.copytree(damage_files.whole(case.kind, damage._ROOT / "whole"), tmp_path / name)
        found.append(case.damage(tmp_path / name)[0].read_bytes())
    assert found[0] == found[1]
    assert damage.check(case) is None


def judged(load, tmp_path, sound=lambda found: True):
    (tmp_path / "x").write_text("x")
    kind = damage_files.Kind(lambda folder: None, ("x",), load, sound)
    return damage.outcome(kind, tmp_path, tmp_path / "x").problem


def refuse(text):
    raise ValueError(text)


def test_checks_find_what_is_wrong_with_a_loader(tmp_path):
    assert judged(lambda folder: refuse(f"{folder / 'x'} is damaged"), tmp_path) is None
    assert "does not name it" in judged(lambda folder: refuse("something"), tmp_path)
    assert "advises" in judged(lambda folder: refuse("x: set weights_only=False"), tmp_path)
    assert "ZeroDivisionError" in judged(lambda folder: 1 / 0, tmp_path)
    assert "its content is wrong" in judged(lambda folder: 1, tmp_path, lambda found: False)
    assert "something in it ran" in judged(lambda folder: damage._MARKER.write_text(""), tmp_path)
    assert "MiB" in judged(lambda folder: np.ones(600 << 17).sum(), tmp_path)
