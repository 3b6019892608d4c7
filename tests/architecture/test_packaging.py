"""Distributions: the source one is the checkout, wheels draw digits, files have a licence."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest
from places import ROOT

from gms_fast.ops import native
from gms_fast.version import __version__

WEIGHTS = (".safetensors", ".npz", ".npy", ".pt", ".pth", ".bin")
FILES = [path for top in ("gms_fast", "tests") for path in (ROOT / top).rglob("*") if path.suffix in WEIGHTS]
FOLDERS = sorted({str(path.parent.relative_to(ROOT)) for path in FILES})
LEFTOVERS = ("gms_fast/_C.so", "kernels/__pycache__/x.pyc", "build/x.o", "dist/x.whl", ".venv/x.py", "runs/x.npz")
TERMS = {"MNIST": "CC BY-SA 3.0", "scikit-learn's digits": "CC BY 4.0", "CIFAR-10 (JPEG 75)": "without a licence"}
LICENCES = {"LICENSE", "NOTICE", *(f"LICENSES/{path.name}" for path in (ROOT / "LICENSES").iterdir())}
CODE = (".py", ".pyi", ".typed", ".so", ".md")
SYSTEM = r"lib(gomp|stdc\+\+|m|gcc_s|c|pthread)\.so\.\d|ld-linux-[\w-]+\.so\.\d"  # what a compiled module may need
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "nvcc", "cmake", "ninja")


def test_weights_are_found_wherever_they_lie():
    assert {"gms_fast/models/mnist", "gms_fast/search/networks", "tests/vectors"} < set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_weights_come_with_the_licence_of_themselves_and_of_their_data(folder):
    licence = (ROOT / folder / "README.md").read_text().partition("\n## Licence\n")[2]
    assert "LICENSE (MIT)" in licence
    assert all((name in licence) == (terms in licence) for name, terms in TERMS.items())
    assert any(name in licence for name in TERMS) == folder.startswith("gms_fast")


def noticed() -> dict[str, str]:
    """Return the patterns of shipped files in NOTICE, with the images that they were made from."""
    section = (ROOT / "NOTICE").read_text().partition("\n1. ")[2].partition("\n2. ")[0]
    rows = [re.split(r"  +", line.strip()) for line in section.splitlines() if line.startswith("    ")]
    return {pattern: images for pattern, _, images in rows}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return the files that an installation copies, without the compiled module."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(folder)], cwd=ROOT, check=True)
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_licences_are_installed_with_the_weights(installed):
    weights = {path.relative_to(ROOT) for path in FILES if path.is_relative_to(ROOT / "gms_fast")}
    assert weights | {path.parent / "README.md" for path in weights} <= installed


def test_notice_covers_every_data_file_once(installed):
    data = [str(path) for path in installed if path.suffix not in CODE]
    covering = {name: [p for p in noticed() if fnmatch.fnmatch(name, p)] for name in data}
    assert len(data) > 15
    assert {name: patterns for name, patterns in covering.items() if len(patterns) != 1} == {}
    assert {p for patterns in covering.values() for p in patterns} == set(noticed())


def test_notice_says_of_images_what_the_model_cards_say():
    text = " ".join((ROOT / "NOTICE").read_text().split())
    assert all(f"{name}: " in text and terms in text for name, terms in TERMS.items())
    for pattern, images in noticed().items():
        card = (ROOT / pattern).parent.joinpath("README.md").read_text()
        assert images == "-" or f"**{images}**" in card


def test_version_and_date_are_the_same_everywhere():
    heading = re.search(r"^## \[(.+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = dict(re.findall(r"^(version|date-released): (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert {"version": __version__, "date-released": heading[2]} == citation
    assert heading[1] == __version__


def test_workflows_run_the_commands_of_the_readme_and_publish_from_tags_alone():
    ci, wheels = ((ROOT / ".github" / "workflows" / f"{name}.yml").read_text() for name in ("ci", "wheels"))
    commands = re.findall(r"^make \w+", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert commands
    assert all(f"- run: {command}\n" in ci for command in commands)
    used = re.findall(r"uses: (\S+)", ci + wheels)
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d[\d.]*", action) for action in used), used
    before, publish = wheels.split("\n  publish:\n")
    assert "id-token" not in before + ci
    assert publish.startswith("    if: github.event_name == 'push' && github.ref_type == 'tag'\n")


def test_source_distribution_holds_the_checkout_and_nothing_else(sdist):
    """Of files unknown to git it has only those of setuptools, such as PKG-INFO and setup.cfg."""
    with tarfile.open(sdist) as tar:
        files = {str(PurePosixPath(*Path(member.name).parts[1:])) for member in tar if member.isfile()}
    written = {name for name in files if name.startswith("gms_fast.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert files - written == committed()


@pytest.mark.slow(200)
@pytest.mark.skipif(not native.available, reason="no compiled module was asked for (GMS_FAST_PURE=1)")
def test_compiled_wheel_of_the_source_distribution_draws_digits(sdist, installed, tmp_path):
    """One test checks everything, because the build takes minutes."""
    wheel = built(sdist, "compiled", tmp_path)
    assert wheel.name.startswith(f"gms_fast-{__version__}-cp3{sys.version_info.minor}-")
    (module,) = modules(wheel)
    check_contents(wheel, installed)
    check_needed(wheel, module, tmp_path)
    check_drawing(wheel, "compiled", tmp_path)


@pytest.mark.slow(60)
def test_pure_wheel_of_the_source_distribution_draws_digits(sdist, installed, tmp_path):
    wheel = built(sdist, "pure", tmp_path)
    assert wheel.name == f"gms_fast-{__version__}-py3-none-any.whl"
    assert modules(wheel) == []
    check_contents(wheel, installed)
    check_drawing(wheel, "pure", tmp_path)


def built(sdist: Path, kind: str, folder: Path) -> Path:
    """Build the wheel of a source distribution without a network."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = {"GMS_FAST_CUDA": "0", "GMS_FAST_PURE": str(int(kind == "pure")), "PATH": tools}
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-index", "--no-deps"]
    command = [*pip, "--no-build-isolation", "-w", str(folder), str(sdist)]
    subprocess.run(command, env=os.environ | given, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def modules(wheel: Path) -> list[str]:
    """Return the names of the compiled modules in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.endswith((".so", ".pyd"))]


def check_contents(wheel: Path, installed: set[Path]) -> None:
    """Compare a wheel with what is installed, and its licences with the checkout's."""
    info = f"gms_fast-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        tags = Parser().parsestr(archive.read(f"{info}/WHEEL").decode())
    assert tags["Root-Is-Purelib"] == str(not modules(wheel)).lower()
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("License-File")) == LICENCES
    assert {f"{info}/licenses/{name}" for name in LICENCES} <= names
    others = {name for name in names if not name.startswith(f"{info}/")}
    assert others - set(modules(wheel)) == {str(path) for path in installed}


def check_needed(wheel: Path, module: str, folder: Path) -> None:
    """Compare the libraries a module needs with those of every system.

    auditwheel adds OpenMP's to published wheels.
    """
    if shutil.which("readelf") is None:
        return
    with zipfile.ZipFile(wheel) as archive:
        file = archive.extract(module, folder)
    listed = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", listed)
    assert needed
    assert [name for name in needed if not re.fullmatch(SYSTEM, name)] == []
    assert "PATH)" not in listed  # no folder of the machine that built it


def check_drawing(wheel: Path, kind: str, folder: Path) -> None:
    """Install a wheel where there is no compiler, and draw with it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    assert not any(shutil.which(name, path=str(python.parent)) for name in COMPILERS)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    paths = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    Path(site, "dependencies.pth").write_text("".join(f"{path}\n" for path in sorted(paths)))
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GMS_FAST"))}
    command = [python, str(ROOT / ".ci" / "check_wheel.py"), kind]
    env = own | {"PATH": str(python.parent)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"from {site}/gms_fast/__init__.py" in done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Build the source distribution in a folder with leftovers of builds."""
    folder, tracked = tmp_path_factory.mktemp("checkout"), committed()
    for name in (*tracked, *LEFTOVERS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes() if name in tracked else b"")
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", "made"], cwd=folder, check=True)
    (archive,) = (folder / "made").iterdir()
    return archive


def committed() -> set[str]:
    """Return the existing files of this checkout that git knows."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if (ROOT / name).is_file()}
