"""Choice of the implementation of the ops: "cpp" (CPU), "cuda", "triton" (GPU) or "torch" (the reference, anywhere).

A build of torch for ROCm calls its GPUs "cuda" too: the CUDA library never runs there, Triton may.
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
_LEAST = 8, 0  # compute capability: older cards have no bfloat16, and no minimum that NaN goes through
_TRITON = 3, 6  # earlier ones compile square roots that count denormals as zero
_forced: str | None = None


class Backend(Protocol):
    """The ops on checked arguments. `tensors` are what an op reads, in its own order, and then what it writes."""

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
    """The report of `backends`."""

    available: list[str]
    missing: dict[str, str]
    chosen: dict[str, str | None]
    instruction_set: str | None


def _missing(name: str) -> str:
    """The reason why the backend cannot run here; empty if it can."""
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
    """The version of ROCm that this torch is for; None for all other builds."""
    return torch.version.hip


def _triton() -> tuple[int, ...]:
    """Its version, taken for the wanted one where its package goes by another name."""
    try:
        return tuple(map(int, version("triton").split(".")[:2]))
    except (PackageNotFoundError, ValueError):
        return _TRITON


def _cards() -> list[tuple[str, tuple[int, int]]]:
    """Name and compute capability of each visible GPU."""
    return [
        (torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())
    ]


def _too_old(card: str, capability: tuple[int, int]) -> str:
    if capability >= _LEAST:
        return ""
    return f"{card} has compute capability {_dotted(capability)}, and the kernels need {_dotted(_LEAST)}"


def _unsuited(card: str, capability: tuple[int, int], architectures: tuple[str, ...]) -> str:
    """A reason why a card runs none of the code compiled for `architectures` (CMake's names); empty if it runs some.

    Machine code runs on later cards of its generation, PTX ("90" and "90-virtual" have it, "90-real" not) on all later
    cards. What names no number ("native", "all") was chosen by who compiled it.
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
    """Tell a backend that takes tensors of this device type, if it can run at all."""
    devices = ("cpu", "cuda") if name == "triton" and interpreted() else _DEVICES.get(name)
    return devices is None or device in devices


def interpreted() -> bool:
    """Tell Triton's interpreter, which takes CPU tensors, from its compiler."""
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
    """The backend for tensors on a type of device. Raises RuntimeError if a forced one cannot take them."""
    if _forced is not None:
        if not _runs_on(_forced, device):
            raise RuntimeError(f"backend {_forced!r} is forced, but it does not run on {device} tensors")
        return _forced
    order = {"cpu": ("cpp", "torch"), "cuda": ("cuda", "triton", "torch")}.get(device, ("torch",))
    return next(name for name in order if not _missing(name))


def backends() -> Backends:
    """Report what is available, what is missing and why, and what is chosen per device.

    {"available": [...], "missing": {name: reason}, "chosen": {"cpu": name, "cuda": name or None, .., "other": name},
     "instruction_set": "avx512" | "avx2" | "baseline" | None}

    chosen["other"] is that of every type of device without an entry of its own; ROCm calls its GPUs "cuda" too. It is
    None where there is no such device, or the forced backend does not run there.
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
    """The type of this machine's accelerator: "mps", "xpu", ..; none without one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {} if found is None else {found.type: True}


try:
    set_backend(os.environ.get(VARIABLE) or None)
except (ValueError, RuntimeError) as error:
    raise type(error)(f"environment variable {VARIABLE}: {error}") from None
