"""Imports between packages, limits of solvers, and equal names of ops at every level.

The code is read with `ast`.
"""

import ast

import pytest
import torch
from places import ROOT

from gms_fast import ops
from gms_fast.ops import native, reference

PACKAGE = ROOT / "gms_fast"
OPS = ("fit_mixture", "sample_mixture", "gms_step", "linear_step")


def files(folder):
    found = sorted((ROOT / folder).rglob("*.py")) if (ROOT / folder).is_dir() else [ROOT / folder]
    assert found, f"nothing to check under {folder}"
    return found


def imports(path):
    """Return every module or name that a file imports, dotted, with all its parents.

    Imports inside functions count too.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name, package):
    return name == package or name.startswith(package + ".")


def from_package(path):
    """Return the imports of a file from gms_fast.

    The bare package, which `from gms_fast import x` mentions, is left out.
    """
    return {name for name in imports(path) if name.startswith("gms_fast.")}


def test_imports_are_found_wherever_they_stand(tmp_path):
    source = "import a.b\ndef f():\n    from gms_fast import ops as o\n    from gms_fast.x import y\n"
    (tmp_path / "m.py").write_text(source)
    assert imports(tmp_path / "m.py") == {"a.b", "gms_fast", "gms_fast.ops", "gms_fast.x", "gms_fast.x.y"}


DOWNWARDS = (  # each may import those of its own line and of the lines below
    ("cli", "integrations", "__main__", "__init__"),
    ("generation",),
    ("recommendation",),
    ("search", "quality", "training", "measure", "statistics"),
    ("editing",),
    ("graphing", "sampling", "stepping", "run"),
    ("plan",),
    ("solvers",),
    ("tables",),
    ("models", "io", "guidance", "clipping"),
    ("network",),
    ("assumptions",),
    ("estimate", "prediction", "derivatives"),
    ("ops", "kernels", "_C", "finite"),
    ("steps",),
    ("schedules",),
    ("types", "constants", "callers", "data", "shards", "images", "interrupts", "version", "storage"),
)
ONLY = {  # folder: the parts of gms_fast that it may import, of those that may be imported there
    "gms_fast/ops/reference": ["ops.reference"],
    "gms_fast/ops/native.py": ["_C", "ops"],
    "gms_fast/ops/types.py": [],
    "kernels": ["kernels"],
    "gms_fast/types.py": [],
    "gms_fast/constants.py": [],
    "gms_fast/version.py": [],
    "gms_fast/callers.py": [],
    "gms_fast/interrupts.py": [],
    "gms_fast/storage": ["storage"],
    "gms_fast/data.py": ["shards", "storage"],
    "gms_fast/shards.py": ["storage"],
    "gms_fast/images.py": ["storage"],
}
INSIDE = ("kernels", "_C", "ops.native", "ops.dispatch", "ops.reference")  # private to `ops`
NEVER = {  # folder: the parts of gms_fast that it must not import
    "gms_fast/solvers": INSIDE,
    "gms_fast/tables": INSIDE,
    "gms_fast/sampling.py": (*INSIDE, "models", "io"),
    "gms_fast/models": (*INSIDE, "ops"),
    "gms_fast/training": (*INSIDE, "ops", "solvers", "sampling", "search"),
    "gms_fast/search": (*INSIDE[:-1], "models", "io", "quality"),  # it differentiates the reference
}


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0] if path.is_relative_to(PACKAGE) else "kernels"


@pytest.mark.parametrize("path", [*files("gms_fast"), *files("kernels")], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    level = next(i for i, rooms in enumerate(DOWNWARDS) if room(path) in rooms)
    allowed = {name for rooms in DOWNWARDS[level:] for name in rooms}
    names = from_package(path) if path != PACKAGE / "__init__.py" else set()  # which exports all
    strangers = {name for name in names if name.split(".")[1] not in allowed}
    assert not strangers, f"{path.relative_to(ROOT)} imports {strangers}"


@pytest.mark.parametrize("folder", ONLY)
def test_folder_imports_only_its_rooms(folder):
    allowed = [f"gms_fast.{room}" for room in ONLY[folder]]
    for path in files(folder):
        strangers = {name for name in from_package(path) if not any(within(name, room) for room in allowed)}
        assert not strangers, f"{path.relative_to(ROOT)} imports {strangers}"


@pytest.mark.parametrize("folder", NEVER)
def test_folder_stays_out_of_other_rooms(folder):
    for path in files(folder):
        strangers = {name for name in from_package(path) if any(within(name, f"gms_fast.{r}") for r in NEVER[folder])}
        assert not strangers, f"{path.relative_to(ROOT)} imports {strangers}"


def test_one_file_imports_the_compiled_module():
    importers = [path.name for path in files("gms_fast") if "gms_fast._C" in imports(path)]
    assert importers == ["native.py"]


def test_triton_is_imported_in_kernels_alone():
    for path in files("gms_fast"):
        lazily = path.relative_to(PACKAGE).parts[0] == "cli"  # `gms-fast info` reports its version
        assert lazily or not any(within(name, "triton") for name in imports(path)), path
    for path in files("kernels"):
        foreign = {name.split(".")[0] for name in imports(path)} - {"gms_fast", "torch", "triton"}
        assert foreign <= {
            "contextlib",
            "collections",
            "functools",
            "itertools",
            "math",
            "os",
            "typing",
            "dataclasses",
        }, path


WRITES = {"write_text", "write_bytes", "save_file"}
WRITERS = {  # files that write without `atomic`, and the reason
    "gms_fast/storage/atomic.py",
    "gms_fast/storage/locks.py",
    "bench/gpu/parts.py",  # runs before the package is built
    "bench/gpu/preflight.py",  # likewise
    "bench/gpu/counters.py",  # passes on another program's output
    "bench/faults/kills.py",
    "bench/faults/damage.py",  # writes damaged files on purpose
    "bench/faults/damage_files.py",
}


def test_one_module_writes_files():
    """All other modules write by `atomic`, or by modules that use it."""
    for path in [*files("gms_fast"), *(ROOT / "bench").rglob("*.py")]:
        if path.relative_to(ROOT).as_posix() in WRITERS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner, name = ast.unparse(node.func.value), node.func.attr
            assert owner == "atomic" or name not in WRITES, f"{path.relative_to(ROOT)}:{node.lineno}: {owner}.{name}"
            mode = [a.value for a in node.args if isinstance(a, ast.Constant) and name == "open"]
            assert not any(set(str(m)) & set("wax+") for m in mode), f"{path.relative_to(ROOT)}:{node.lineno}"


TOP = {"cli": {"cli", "__main__.py"}, "integrations": {"integrations", "__init__.py"}}  # package: its importers


@pytest.mark.parametrize(("room", "users"), TOP.items())
def test_nobody_imports_what_stands_at_the_top(room, users):
    for path in files("gms_fast"):
        inside = path.relative_to(PACKAGE).parts[0] in users
        assert inside or not any(within(name, f"gms_fast.{room}") for name in imports(path)), path


def test_nobody_imports_the_tests_or_the_benchmarks():
    for path in [*files("gms_fast"), *files("kernels"), *(ROOT / "bench").rglob("*.py")]:
        assert not any(within(name, "tests") for name in imports(path)), path
    for path in [*files("gms_fast"), *files("kernels")]:
        assert not any(within(name, "bench") for name in imports(path)), path


def calls(tree):
    """Return the dotted names of everything that is called."""
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("path", files("gms_fast/solvers"), ids=lambda p: p.name)
def test_solvers_hide_nothing(path):
    """Solvers print nothing, never wait for the device, and draw only counter-based noise."""
    for name in calls(ast.parse(path.read_text())):
        assert name != "print"
        assert name.rpartition(".")[2] not in ("item", "tolist", "cpu", "randn", "randn_like", "rand", "rand_like")


def test_no_module_is_named_utils():
    for path in [*files("gms_fast"), *files("kernels"), *files("tests"), *(ROOT / "bench").rglob("*.py")]:
        assert not {"utils", "util", "helpers", "misc", "common"} & {path.stem, path.parent.name}, path


def exported(path):
    """Return the names that an `__init__` file takes from its modules."""
    tree = ast.parse(path.read_text())
    return {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}


@pytest.mark.parametrize("op", OPS)
def test_op_has_one_name_at_every_level(op):
    for level in (reference, ops, native, torch.ops.gms_fast):
        assert callable(getattr(level, op)), level
    assert op in exported(ROOT / "kernels" / "__init__.py")
    headers = "".join(path.read_text() for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu"))
    assert f"{op}(" in headers
    if native.available:
        assert callable(getattr(native.compiled, op))


def test_counter_based_noise_has_one_name_at_every_level():
    for level in (reference, ops, torch.ops.gms_fast):
        assert callable(level.philox_normal)
        assert callable(level.philox_uniform)
    assert callable(native.philox)
    assert "philox" in exported(ROOT / "kernels" / "__init__.py")


def test_every_registered_op_is_defined_and_public():
    registered = {schema.partition("(")[0] for schema in ops.library.SCHEMAS}
    out = {"gms_step_out", "affine_noise_out"}
    assert registered == {*OPS, *out, "affine_noise", "philox_normal", "philox_uniform"}
    for name in registered - out:
        assert callable(getattr(ops, name))
