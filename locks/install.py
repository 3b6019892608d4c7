"""Install the locked packages into this Python's environment: `python locks/install.py`.

pip checks every file's hash. On Linux the torch of the package index is one for CUDA. Where pip is pointed at another
build, that one is taken, if its hash is known. --unchecked installs the versions of constraints.txt instead, from
wherever they come.
"""

import argparse
import importlib.util
import platform
import re
import subprocess
import sys
from pathlib import Path

LOCKS = Path(__file__).resolve().parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
TRITON = "triton==3.6.0"  # for a torch that brings none, as one for CPUs; docs/decisions.md (32)


def torch_here(release: str) -> str:
    """Return the version that pip takes for this release of torch, such as 2.13.0+cpu."""
    listed = subprocess.run([*PIP, "index", "versions", "torch"], capture_output=True, text=True, check=False).stdout
    found = re.search(rf"\b{re.escape(release)}(\+[\w.]+)?(?=[,\s])", listed)  # the highest comes first
    return found[0] if found else release


def lock_of(torch: str, release: str) -> Path:
    """Return the lock file of a version of torch on this machine, or raise SystemExit."""
    if torch == release:
        return LOCKS / "torch.txt"
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for file in LOCKS.glob(f"torch-{torch}-{python}-*_{platform.machine()}.txt"):
        return file
    # To go on unchecked would let an index switch the check off by listing a build of its own.
    raise SystemExit(
        f"pip finds torch {torch} here, and locks/ has no hash of it for {python} on {platform.machine()}: `make setup "
        "LOCK=no` takes it and the versions of constraints.txt, unchecked"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--unchecked", action="store_true", help="take the versions of constraints.txt, without hashes")
    if parser.parse_args().unchecked:
        print("LOCK=no: the versions of constraints.txt, without a check of hashes")
        install("-r", str(LOCKS.parent / "requirements.txt"))
        if importlib.util.find_spec("triton") is None:
            install(TRITON)
        return
    release = re.search(r"^torch==(.*)$", (LOCKS.parent / "constraints.txt").read_text(), re.M)[1]
    lock = lock_of(torch_here(release), release)
    install("--require-hashes", "-r", str(LOCKS / "common.txt"), "-r", str(lock))


def install(*arguments: str) -> None:
    """Run pip install, which reports its own errors; raise SystemExit if it fails."""
    if code := subprocess.run([*PIP, "install", "--quiet", *arguments], check=False).returncode:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
