"""Which implementation of the ops runs: "cpp" (CPU), "cuda", "triton" (GPU) or "torch" (the reference, anywhere)."""

import functools
import os
from importlib.util import find_spec

import torch

from gms_fast import _native

NAMES = ("cpp", "cuda", "triton", "torch")
VARIABLE = "GMS_FAST_BACKEND"
_DEVICES = {"cpp": ("cpu",), "cuda": ("cuda",), "triton": ("cuda",), "torch": ("cpu", "cuda")}
_forced: str | None = None


def _missing(name: str) -> str:
    """Why the backend cannot run here; empty if it can."""
    if name == "cpp":
        return _native.reason
    if name == "cuda":
        if not _native.with_cuda:
            return "the CUDA kernels were not compiled: install with nvcc on PATH"
        return "" if torch.cuda.is_available() else "no CUDA device is visible"
    if name == "triton":
        if find_spec("triton") is None:
            return 'triton is not installed: pip install "gms-fast[triton]"'
        if interpreted():
            return ""
        return "" if torch.cuda.is_available() else "no CUDA device is visible (TRITON_INTERPRET=1 runs it on the CPU)"
    return ""


def _devices(name: str) -> tuple[str, ...]:
    return ("cpu", "cuda") if name == "triton" and interpreted() else _DEVICES[name]


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def set_backend(name: str | None) -> None:
    """Force one backend for every op, or None to choose by device again.

    Raises ValueError for an unknown name, RuntimeError with the reason for one that cannot run here.
    """
    global _forced
    if name is not None:
        if name not in NAMES:
            raise ValueError(f"backend must be one of {', '.join(NAMES)}: got {name!r}")
        if why := _missing(name):
            raise RuntimeError(f"backend {name!r} is not available: {why}")
    _forced = name
    chosen.cache_clear()


@functools.cache
def chosen(device: str) -> str:
    """The backend for tensors on "cpu" or "cuda". Raises RuntimeError if a forced one cannot take them."""
    if _forced is not None:
        if device not in _devices(_forced):
            raise RuntimeError(f"backend {_forced!r} is forced, but it does not run on {device} tensors")
        return _forced
    order = ("cpp", "torch") if device == "cpu" else ("cuda", "triton", "torch")
    return next(name for name in order if not _missing(name))


def backends() -> dict[str, object]:
    """What is available, what is missing and why, and what is chosen per device.

    {"available": [...], "missing": {name: reason}, "chosen": {"cpu": name, "cuda": name or None},
     "instruction_set": "avx512" | "avx2" | "baseline" | None}
    """
    missing = {name: why for name in NAMES if (why := _missing(name))}
    devices = {"cpu": True, "cuda": torch.cuda.is_available()}
    usable = {d: here and d in _devices(_forced or "torch") for d, here in devices.items()}
    return {
        "available": [name for name in NAMES if name not in missing],
        "missing": missing,
        "chosen": {d: chosen(d) if usable[d] else None for d in devices},
        "instruction_set": _native.instruction_set(),
    }


try:
    set_backend(os.environ.get(VARIABLE) or None)
except (ValueError, RuntimeError) as error:
    raise type(error)(f"environment variable {VARIABLE}: {error}") from None
