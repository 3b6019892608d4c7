"""Result files, with the environment that produced the results."""

import json
import platform
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import torch

import gms_fast
from bench.records import checkout
from gms_fast.storage import atomic


def environment(commit: str | None = None) -> dict[str, object]:
    """Describe the versions, processor and commit of a result.

    Args:
        commit: The commit; None asks git.
    """
    return {
        "date": date.today().isoformat(),
        "commit": commit or checkout.commit(),
        "gms_fast": gms_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "backends": gms_fast.backends(),
    }


def save(path: Path, result: Mapping[str, object]) -> None:
    """Write a result as JSON."""
    atomic.write_text(path, json.dumps(result, indent=1) + "\n")
