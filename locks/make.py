"""Lock what set-up installs: `python locks/make.py [WHEEL ...]`, with uv on PATH.

Resolves requirements.txt under constraints.txt for Python 3.10 and later on every platform. Writes, with the sha256 of
each file that the package index has of a version,

    common.txt  all but torch and what only torch asks for
    torch.txt   torch as the package index has it, and CUDA's libraries and Triton, which it asks for on Linux

and for each WHEEL, a build of torch from elsewhere, a file of its name with the wheel's hash and a Triton. Versions
that are locked stay; without the files the newest that the constraints admit are taken.
"""

import argparse
import hashlib
import re
import subprocess
import tempfile
from pathlib import Path

from install import LOCKS, TRITON

WITH_TORCH = ("torch=", "triton=", "cuda-", "nvidia-")  # how the entries of torch.txt begin
HEADER = """\
# Exact versions and the hashes of their files, which `make setup` checks; for {}.
# Made by: python locks/make.py {}
"""


def resolve(requirements: str, locked: str) -> list[str]:
    """Return an entry for each package that the requirements need, directly or not.

    An entry has the version, platforms, hashes and the packages that ask for it.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lock.txt"
        file.write_text(locked)
        options = ["--universal", "--python-version=3.10", "--no-python-downloads", "--generate-hashes", "--no-header"]
        command = ["uv", "pip", "compile", "--quiet", *options, f"--output-file={file}", "-"]
        subprocess.run(command, cwd=LOCKS.parent, input=requirements, text=True, check=True)
        return re.findall(r"^\w.*\n(?:\s.*\n)*", file.read_text(), re.M)


def of_wheel(wheel: Path) -> str:
    """The entry of a wheel: its version is in its name."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"torch=={wheel.name.split('-')[1]} \\\n    --hash=sha256:{digest}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", nargs="*", type=Path, metavar="WHEEL", help="a build of torch from elsewhere")
    wheels = parser.parse_args().wheels
    locked = "".join(file.read_text() for file in (LOCKS / "common.txt", LOCKS / "torch.txt") if file.exists())
    entries = resolve("-r requirements.txt", locked)
    everywhere = "Python 3.10 and later on every platform"
    write("common", everywhere, wheels, [entry for entry in entries if not entry.startswith(WITH_TORCH)])
    write("torch", everywhere, wheels, [entry for entry in entries if entry.startswith(WITH_TORCH)])
    for wheel in wheels:
        write(wheel.stem, "machines that take this wheel", wheels, [of_wheel(wheel), *resolve(TRITON, "")])


def write(name: str, scope: str, wheels: list[Path], entries: list[str]) -> None:
    header = HEADER.format(scope, " ".join(wheel.name for wheel in wheels))
    (LOCKS / f"{name}.txt").write_text(header + "".join(entries))


if __name__ == "__main__":
    main()
