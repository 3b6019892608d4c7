"""Top level: type checkers and the lazy import know the same names, and the import is quick."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gms_fast


def named_for_editors():
    """Return the names under `if TYPE_CHECKING`."""
    tree = ast.parse(Path(gms_fast.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {alias.asname for node in block.body for alias in node.names}


def test_names_for_editors_are_those_of_the_look_up():
    assert named_for_editors() | {"ops", "__version__"} == set(gms_fast.__all__)
    assert set(gms_fast.__all__) <= set(dir(gms_fast))


@pytest.mark.parametrize("name", gms_fast.__all__)
def test_name_is_found(name):
    assert getattr(gms_fast, name) is getattr(gms_fast, name)


def test_modules_are_found_too():
    code = "import gms_fast; gms_fast.io.save, gms_fast.prediction.names"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'gms_fast' has no attribute 'sampel'"):
        gms_fast.sampel  # noqa: B018


def test_import_brings_the_ops_and_nothing_that_takes_long():
    """Importing torch takes a second; this package must not add to it."""
    code = "import sys, torch; before = set(sys.modules); import gms_fast; torch.ops.gms_fast.gms_step; "
    code += "print(*sorted({name.partition('.')[0] if not name.startswith('gms_fast') else name "
    code += "for name in set(sys.modules) - before}))"
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    brought = set(run.stdout.split())
    assert "gms_fast.ops.fused" in brought
    rooms = ("solvers", "models", "storage", "schedules", "prediction", "sampling")
    assert not {name for name in brought if name.startswith(tuple(f"gms_fast.{room}" for room in rooms))}
    assert not brought & {"tqdm", "PIL", "scipy", "sklearn", "matplotlib", "safetensors", "triton", "diffusers"}
