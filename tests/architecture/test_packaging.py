"""Source distribution: it contains the checkout, and weights have their licence."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

import pytest
from places import ROOT

WEIGHTS = (".safetensors", ".npz", ".npy", ".pt", ".pth", ".bin")
FILES = [path for top in ("gms_fast", "tests") for path in (ROOT / top).rglob("*") if path.suffix in WEIGHTS]
FOLDERS = sorted({str(path.parent.relative_to(ROOT)) for path in FILES})
LEFTOVERS = ("gms_fast/_C.so", "kernels/__pycache__/x.pyc", "build/x.o", "dist/x.whl", ".venv/x.py", "runs/x.npz")


def test_weights_are_found_wherever_they_lie():
    assert {"gms_fast/models/mnist", "gms_fast/search/networks", "tests/vectors"} < set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_weights_come_with_the_licence_of_themselves_and_of_their_data(folder):
    licence = (ROOT / folder / "README.md").read_text().partition("\n## Licence\n")[2]
    assert "LICENSE (MIT)" in licence
    data = {"MNIST": "CC BY-SA 3.0", "scikit-learn's digits": "CC BY 4.0"}
    assert all((name in licence) == (terms in licence) for name, terms in data.items())
    assert any(name in licence for name in data) == folder.startswith("gms_fast")


def test_licences_are_installed_with_the_weights(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    shipped = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    weights = {path.relative_to(ROOT) for path in FILES if path.is_relative_to(ROOT / "gms_fast")}
    assert weights | {path.parent / "README.md" for path in weights} <= shipped


def test_source_distribution_holds_the_checkout_and_nothing_else(tmp_path):
    """Of files unknown to git it has only those of setuptools, such as PKG-INFO and setup.cfg."""
    tracked = committed()
    for name in (*tracked, *LEFTOVERS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes() if name in tracked else b"")
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", "made"], cwd=tmp_path, check=True)
    (archive,) = (tmp_path / "made").iterdir()
    with tarfile.open(archive) as tar:
        files = {str(PurePosixPath(*Path(member.name).parts[1:])) for member in tar if member.isfile()}
    written = {name for name in files if name.startswith("gms_fast.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert files - written == tracked


def committed() -> set[str]:
    """Return the existing files of this checkout that git knows."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if (ROOT / name).is_file()}
