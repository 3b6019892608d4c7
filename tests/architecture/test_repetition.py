"""Every formula in one place: no six equal lines of logic, no repeated optimiser constants."""

import ast
import itertools
import re
from collections import defaultdict

import pytest
from places import ROOT

LINES = 6
FILES = [*sorted((ROOT / "gms_fast").rglob("*.py")), *sorted((ROOT / "bench").rglob("*.py"))]


def logic(source):
    """Return (number, text) of the lines of logic.

    Imports, docstrings, comments, signatures, closing brackets and passed-on arguments are not logic.
    """
    skipped = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        ):
            skipped.update(range(node.lineno, node.end_lineno + 1))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            skipped.update(range(node.lineno, node.end_lineno + 1))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            skipped.update(range(node.lineno, node.body[0].lineno))
    for number, line in enumerate(source.splitlines(), start=1):
        text = line.strip()
        idle = number in skipped or text.startswith("#") or not any(map(str.isalnum, text))
        if not idle and not re.fullmatch(r"(\w+)=\1,", text):
            yield number, text


def repeated(sources):
    """Return the places of equal runs of lines."""
    found = defaultdict(list)
    for name, source in sources.items():
        lines = list(logic(source))
        for run in zip(*(itertools.islice(lines, i, None) for i in range(LINES)), strict=False):
            found[tuple(text for _, text in run)].append(f"{name}:{run[0][0]}")
    return [places for places in found.values() if len(places) > 1]


def test_no_six_equal_lines_of_logic_in_two_places():
    assert not repeated({str(path.relative_to(ROOT)): path.read_text() for path in FILES})


def test_repetition_is_found():
    body = "\n".join(f"    x = f(x, {i})" for i in range(LINES))
    sources = {"a.py": f"def a(x):\n{body}\n    return x\n", "b.py": f"import a\n\n\ndef b(x):\n{body}\n"}
    assert repeated(sources) == [["a.py:2", "b.py:5"]]


@pytest.mark.parametrize(("number", "times"), [(0.06, 1), (70, 1), (1e-8, 1)])
def test_numbers_of_the_released_optimiser_stand_once(number, times):
    """They are in `ops.types.Fit`; signatures, schemas and solvers read them there."""
    constants = [
        f"{path.name}:{node.lineno}"
        for room in ("ops", "solvers")
        for path in (ROOT / "gms_fast" / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and type(node.value) is type(number) and node.value == number
    ]
    assert len(constants) == times, constants
