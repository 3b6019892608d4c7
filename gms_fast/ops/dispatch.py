"""Choice of the ops' backend: "cpp" (CPU), "cuda" or "triton" (GPU), "torch" (reference).

A build of torch for ROCm calls its GPUs "cuda" too. The CUDA library never runs there; Triton may.
"""

import functools
import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Protocol, TypedDict

import torch
from torch import Tensor

from gms_fast.ops import native
from gms_fast.ops.layout import Layout
from gms_fast.ops.types import Draws, Fit, Linear, Stepping, StepTensors, Tensors, Watch

NAMES = ("cpp", "cuda", "triton", "torch")
VARIABLE = "GMS_FAST_BACKEND"
OTHER = "other"  # stands for every device that is neither "cpu" nor "cuda"
_DEVICES = {"cpp": ("cpu",), "cuda": ("cuda",), "triton": ("cuda",)}  # "torch" runs on all there are
_LEAST = 8, 0  # compute capability: older GPUs have no bfloat16, and no minimum that propagates NaN
_TRITON = 3, 6  # earlier ones compile square roots that count denormals as zero
_forced: str | None = None


class Backend(Protocol):
    """Interface of a backend: the ops on checked arguments.

    `tensors` are those that an op reads, in its own order, and then those that it writes.
    """

    def gms_step(
        self,
        tensors: StepTensors,
        layout: Layout | None,
        step: Stepping,
        numbers: Tensor | None,
        fit: Fit,
        draws: Draws,
        watch: Watch | None,
    ) -> None: ...

    def sample_mixture(
        self, tensors: tuple[Tensor, ...], layout: Layout | None, floor: float, fit: Fit, draws: Draws
    ) -> None: ...

    def fit_mixture(self, tensors: tuple[Tensor, ...], layout: Layout | None, floor: float, fit: Fit) -> None: ...

    def linear_step(
        self,
        tensors: Tensors,
        layout: Layout | None,
        step: Linear,
        numbers: Tensor | None,
        draws: Draws,
        watch: Watch | None,
    ) -> None: ...

    def philox(self, out: Tensor, draws: Draws, stream: int, normal: bool) -> None: ...


class Backends(TypedDict):
    """Report of `backends`."""

    available: list[str]
    missing: dict[str, str]
    chosen: dict[str, str | None]
    instruction_set: str | None


def _missing(name: str) -> str:
    """Return the reason why a backend cannot run here; empty if it can."""
    if name == "cpp":
        return native.reason
    if name == "cuda":
        if rocm():
            return f"this torch is for ROCm {rocm()}, and the CUDA kernels are for NVIDIA's GPUs"
        if not native.with_cuda:
            return (
                "the CUDA kernels were not compiled: install with nvcc on PATH and a torch for CUDA, or GMS_FAST_CUDA=1"
            )
        if not torch.cuda.is_available():
            return "no CUDA device is visible"
        return next(filter(None, (_unsuited(*card, native.cuda_architectures) for card in _cards())), "")
    if name == "triton":
        if find_spec("triton") is None:
            return 'triton is not installed: pip install "gms-fast[triton]"'
        if (found := _triton()) < _TRITON:
            return f'triton {_dotted(found)} is older than {_dotted(_TRITON)}: pip install "gms-fast[triton]"'
        if interpreted():
            return ""
        if not torch.cuda.is_available():
            return "no CUDA device is visible (TRITON_INTERPRET=1 runs it on the CPU)"
        return "" if rocm() else next(filter(None, (_too_old(*card) for card in _cards())), "")
    return ""


def rocm() -> str | None:
    """Return the ROCm version of this torch; None for all other builds."""
    return torch.version.hip


def _triton() -> tuple[int, ...]:
    """Return Triton's version.

    If its package goes by another name, the least version that works is assumed.
    """
    try:
        return tuple(map(int, version("triton").split(".")[:2]))
    except (PackageNotFoundError, ValueError):
        return _TRITON


def _cards() -> list[tuple[str, tuple[int, int]]]:
    """Return name and compute capability of each visible GPU."""
    return [
        (torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())
    ]


def _too_old(card: str, capability: tuple[int, int]) -> str:
    if capability >= _LEAST:
        return ""
    return f"{card} has compute capability {_dotted(capability)}, and the kernels need {_dotted(_LEAST)}"


def _unsuited(card: str, capability: tuple[int, int], architectures: tuple[str, ...]) -> str:
    """Return the reason why a GPU runs none of the compiled CUDA code; empty if it runs some.

    `architectures` are CMake's names. Machine code runs on later GPUs of its generation. PTX, which "90" and
    "90-virtual" contain but "90-real" does not, runs on all later GPUs. Names without a number ("native", "all") were
    chosen by whoever compiled the code, and are trusted.
    """
    if too_old := _too_old(card, capability):
        return too_old
    for architecture in architectures:
        number, _, kind = architecture.partition("-")
        if not number.isdigit():
            return ""
        major, minor = divmod(int(number), 10)
        has_code, has_ptx = kind != "virtual", kind != "real"
        if has_code and major == capability[0] and minor <= capability[1]:
            return ""
        if has_ptx and (major, minor) <= capability:
            return ""
    return (
        f"{card} has compute capability {_dotted(capability)}, and the CUDA kernels were compiled for "
        f"{', '.join(architectures)}: install with CUDAARCHS={capability[0]}{capability[1]} and GMS_FAST_CUDA=1"
    )


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _runs_on(name: str, device: str) -> bool:
    """Return True if the backend takes tensors of this device type, provided that it can run."""
    devices = ("cpu", "cuda") if name == "triton" and interpreted() else _DEVICES.get(name)
    return devices is None or device in devices


def interpreted() -> bool:
    """Return True if Triton runs in its interpreter, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def set_backend(name: str | None) -> None:
    """Force one backend for all ops, or return to the automatic choice.

    To force a backend when the package is imported, set the environment variable `GMS_FAST_BACKEND`.

    Args:
        name: "cpp", "cuda", "triton" or "torch", or None to choose the backend by the device of the tensors.

    Raises:
        ValueError: If there is no backend with this name.
        RuntimeError: If the backend cannot run on this machine. The message explains why and what to install.

    Examples:
        >>> gms_fast.set_backend("torch")
        >>> gms_fast.backends()["chosen"]["cpu"]
        'torch'
        >>> gms_fast.set_backend(None)
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
    """Return the backend for tensors of a device type.

    Raises RuntimeError if a forced backend cannot take them.
    """
    if _forced is not None:
        if not _runs_on(_forced, device):
            raise RuntimeError(f"backend {_forced!r} is forced, but it does not run on {device} tensors")
        return _forced
    order = {"cpu": ("cpp", "torch"), "cuda": ("cuda", "triton", "torch")}.get(device, ("torch",))
    return next(name for name in order if not _missing(name))


def backends() -> Backends:
    """Report the backends that can run on this machine and the backend chosen for each device.

    Returns:
        Dictionary with the following entries.

        - "available": List of the backends that can run on this machine.
        - "missing": Dictionary that maps each of the other backends to the reason why it cannot run.
        - "chosen": Dictionary that maps each device type to its backend. "other" stands for all device types that are
          not listed. The backend is None if there is no such device, or if a forced backend does not run on it. AMD
          GPUs are listed as "cuda", as in torch.
        - "instruction_set": The instruction set used on CPUs: "avx512", "avx2" or "baseline". None without the compiled
          module.

    Examples:
        >>> report = gms_fast.backends()
        >>> "torch" in report["available"], sorted(report)
        (True, ['available', 'chosen', 'instruction_set', 'missing'])
    """
    missing = {name: why for name in NAMES if (why := _missing(name))}
    devices = {"cpu": True, "cuda": torch.cuda.is_available(), **_accelerator(), OTHER: True}
    usable = {d: here and _runs_on(_forced or "torch", d) for d, here in devices.items()}
    return {
        "available": [name for name in NAMES if name not in missing],
        "missing": missing,
        "chosen": {d: chosen(d) if usable[d] else None for d in devices},
        "instruction_set": native.instruction_set(),
    }


def _accelerator() -> dict[str, bool]:
    """Return the type of this machine's accelerator, as "mps" or "xpu"; empty without one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {} if found is None else {found.type: True}


try:
    set_backend(os.environ.get(VARIABLE) or None)
except (ValueError, RuntimeError) as error:
    raise type(error)(f"environment variable {VARIABLE}: {error}") from None
