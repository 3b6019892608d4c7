"""List the tools and packages that a session on this machine's GPU finds.

    python -m bench.gpu.preflight [--out FILE]

Exits with status 2 if nothing can be measured: no GPU, or a torch that cannot use it.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

TOOLS = {  # and the consequence if one is missing
    "nvcc": "no CUDA kernels, so Triton alone is measured",
    "cmake": "no compiled module, so Triton alone is measured and not held against C++",
    "ninja": "no compiled module, so Triton alone is measured and not held against C++",
    "g++": "no compiled module, and no torch.compile",
    "nvidia-smi": "driver and clocks stay unknown",
    "compute-sanitizer": "no --sanitize",
    "git": "the commit stays unknown unless --commit names it",
}
PACKAGES = {
    "torch": "nothing can be measured",
    "numpy": "gms_fast cannot be imported",
    "safetensors": "gms_fast cannot be imported",
    "tqdm": "gms_fast cannot be imported",
    "pillow": "gms_fast cannot be imported",
    "triton": "no Triton rows, and no torch.compile",
    "setuptools": "gms_fast cannot be built",
    "pybind11": "no compiled module, so Triton alone is measured and not held against C++",
    "pytest": "no tests",
    "pytest-xdist": "tests run one by one, and a crash ends their part",
    "pytest-timeout": "a test that hangs ends its part",
}
QUERY = {  # name in the record: field of nvidia-smi
    "gpu": "name",
    "driver": "driver_version",
    "memory": "memory.total",
    "power limit": "power.limit",
    "clock": "clocks.sm",
    "highest clock": "clocks.max.sm",
    "memory clock": "clocks.mem",
    "highest memory clock": "clocks.max.mem",
}


def run(*command: str) -> str:
    """Return the output of a command; empty if it does not exist or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def tools() -> dict[str, str]:
    """Return the versions of the tools that are installed."""
    found = {name: run(name, "--version") for name in TOOLS if shutil.which(name)}
    return {name: (re.findall(r"\d+\.[\d.]*\d", text) or ["?"])[0] for name, text in found.items()}


def packages() -> dict[str, str]:
    installed = {found.name.lower(): found.version for found in distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def missing(there: dict[str, str]) -> list[str]:
    """Return one line for each missing thing, with the consequence."""
    lacks = [f"{name} is missing: {cost}" for name, cost in {**TOOLS, **PACKAGES}.items() if name not in there]
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        lacks.append("Python.h is missing: no compiled module, no Triton and no torch.compile")
    return lacks


def driver() -> dict[str, str]:
    """Return facts about the first GPU from nvidia-smi."""
    values = run("nvidia-smi", f"--query-gpu={','.join(QUERY.values())}", "--format=csv,noheader").split("\n")[0]
    return dict(zip(QUERY, values.split(", "), strict=False)) if values else {}


def device() -> dict[str, str]:
    """Return the GPU as torch sees it.

    Raises RuntimeError with the reason if torch cannot use one.
    """
    try:
        import torch
    except Exception as error:  # a torch made for another machine may raise anything
        raise RuntimeError(f"torch cannot be imported ({type(error).__name__}: {error})") from None
    if torch.version.cuda is None:
        raise RuntimeError(f"torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device is visible")
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    try:
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise RuntimeError(f"torch {torch.__version__} does not run on {name}, sm_{major}{minor} ({reason})") from None
    return {"gpu": name, "capability": f"{major}.{minor}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the facts as JSON")
    parser.add_argument("--rehearse", action="store_true", help="do without a GPU")
    args = parser.parse_args()
    versions = {"python": platform.python_version(), **tools(), **packages()}
    lacks, facts = missing(versions), {"cores": os.cpu_count(), **driver()}
    status = 0
    try:
        facts |= {} if args.rehearse else device()
    except RuntimeError as error:
        lacks.append(f"{error}: nothing can be measured")
        status = 2
    lines = [", ".join(f"{name} {value}" for name, value in {**facts, **versions}.items()), *lacks]
    print(*lines, sep="\n")
    if args.out:
        args.out.write_text(json.dumps({**facts, "versions": versions, "missing": lacks, "lines": lines}) + "\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
