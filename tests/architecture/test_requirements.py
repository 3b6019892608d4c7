"""Requirements: constraints pin them, locks hold those versions with hashes, and they match.

The installed versions match too.
"""

import platform
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT

LOCKS = ROOT / "locks"
INSTALL = runpy.run_path(str(LOCKS / "install.py"), run_name="install")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
HERE = f"cp{sys.version_info.major}{sys.version_info.minor}"


def lines(file):
    """Return the requirements of a file, without comments, options and hashes."""
    found = [line.split("#")[0].split("\\")[0].strip() for line in file.read_text().splitlines()]
    return [Requirement(line) for line in found if line and not line.startswith("-")]


def versions(files, python):
    """Return name -> specifiers that apply on Linux, for the requirements of files."""
    machine = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    found = {}
    for requirement in (requirement for file in files for requirement in lines(file)):
        if requirement.marker is None or requirement.marker.evaluate(machine | {"platform_machine": "x86_64"}):
            found.setdefault(canonicalize_name(requirement.name), []).append(str(requirement.specifier))
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_one_pin(python):
    pins = versions([ROOT / "constraints.txt"], python)
    asked = versions([ROOT / "requirements.txt"], python)
    assert {"torch", "cmake", "pytest"} < set(asked)
    assert {name: len(pins.get(name, [])) for name in asked} == dict.fromkeys(asked, 1)
    assert all(re.fullmatch(r"==[\w.]+", pin) for found in pins.values() for pin in found)


@pytest.mark.parametrize("python", PYTHONS)
def test_locks_hold_the_versions_of_the_constraints(python):
    pins = versions([ROOT / "constraints.txt"], python)
    locked = versions([LOCKS / "common.txt", LOCKS / "torch.txt"], python)
    assert set(versions([ROOT / "requirements.txt"], python)) < set(locked)
    assert {name: locked.get(name) for name in pins} == pins
    assert all(len(found) == 1 for found in locked.values())


@pytest.mark.parametrize("file", sorted(LOCKS.glob("*.txt")), ids=lambda f: f.name)
def test_every_locked_version_is_exact_and_has_hashes(file):
    entries = re.findall(r"^\w.*\n(?:\s.*\n)*", file.read_text(), re.M)
    assert len(entries) == len(lines(file))
    for entry in entries:
        assert re.match(r"[\w.-]+==[\w.+]+ ", entry)
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry)


def test_locks_of_other_builds_are_of_the_same_release():
    release = versions([ROOT / "constraints.txt"], "3.11")["torch"]
    for file in LOCKS.glob("torch-*.txt"):
        assert [pin.split("+")[0] for pin in versions([file], "3.11")["torch"]] == release
        assert versions([file], "3.11")["triton"] == [INSTALL["TRITON"].removeprefix("triton")]


@pytest.mark.parametrize(
    ("listed", "taken"),
    [
        ("torch (2.14.1)\nAvailable versions: 2.14.1, 2.13.0+cpu, 2.13.0, 2.12.0+cpu\n", "2.13.0+cpu"),
        ("torch (2.14.1)\nAvailable versions: 2.14.1, 2.13.0, 2.12.0+cpu\n", "2.13.0"),
        ("Available versions: 12.13.0+cpu, 2.13.0.1, 2.13.0\n", "2.13.0"),
        ("", "2.13.0"),
    ],
)
def test_the_build_of_torch_is_the_one_that_pip_would_take(listed, taken, monkeypatch):
    done = subprocess.CompletedProcess([], 0, stdout=listed)
    monkeypatch.setattr(INSTALL["subprocess"], "run", lambda *_, **__: done)
    assert INSTALL["torch_here"]("2.13.0") == taken


def test_each_build_has_its_lock_and_an_unknown_one_is_refused(tmp_path, monkeypatch):
    lock_of = INSTALL["lock_of"]
    monkeypatch.setitem(lock_of.__globals__, "LOCKS", tmp_path)
    wheel = tmp_path / f"torch-2.13.0+cpu-{HERE}-{HERE}-manylinux_2_28_{platform.machine()}.txt"
    wheel.touch()
    (tmp_path / wheel.name.replace(HERE, "cp39")).touch()
    assert lock_of("2.13.0", "2.13.0") == tmp_path / "torch.txt"
    assert lock_of("2.13.0+cpu", "2.13.0") == wheel
    for torch in ("2.13.0+rocm6.4", "2.13.1+cpu"):
        with pytest.raises(SystemExit, match=rf"torch {re.escape(torch)} here.* no hash .* {HERE} .*LOCK=no"):
            lock_of(torch, "2.13.0")


@pytest.mark.parametrize(("option", "checked"), [([], True), (["--unchecked"], False)])
def test_hashes_are_checked_unless_declined(option, checked, monkeypatch, capsys):
    calls = []
    scope = INSTALL["main"].__globals__
    monkeypatch.setattr(sys, "argv", ["install.py", *option])
    monkeypatch.setitem(scope, "torch_here", lambda release: release)
    monkeypatch.setitem(scope, "install", lambda *arguments: calls.append(arguments))
    INSTALL["main"]()
    assert ("--require-hashes" in calls[0]) == checked
    assert ("without a check" in capsys.readouterr().out) != checked
    files = [Path(name).name for name in calls[0] if name.endswith(".txt")]
    assert files == (["common.txt", "torch.txt"] if checked else ["requirements.txt"])


def test_what_pip_refuses_is_refused(monkeypatch):
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(INSTALL["subprocess"], "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit) as error:
        INSTALL["install"]("anything")
    assert error.value.code == 1
