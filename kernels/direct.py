"""Launches of kernels already compiled, without Triton's launcher.

That launcher inspects every argument at every call. Here a kernel is found by what Triton compiles it for
(`Launch.key`), and run as Triton runs it, on the current stream. Triton's knobs are those of the first such launch. On
ROCm, whose GPUs take other arguments, Triton launches all kernels.
"""

import torch
import triton
from triton import knobs
from triton.runtime import JITFunction

_AS_KNOWN = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 10)  # how a kernel is run is not documented
_MOST = 4096  # Triton keeps its kernels for good: one that is dropped here is not compiled again
_kernels: dict[tuple, object] = {}


def run(launch, like: torch.Tensor) -> None:
    """Launch on the device of `like`, or run in Triton's interpreter."""
    if not isinstance(launch.kernel, JITFunction):
        run_by_triton(launch)
        return
    index = like.get_device()
    if index == torch._C._cuda_getDevice():
        _run_on(index, launch)
        return
    with torch.cuda.device(index):
        _run_on(index, launch)


def run_by_triton(launch) -> object:
    """Launch through Triton, and return the kernel if it was compiled."""
    return launch.kernel[launch.grid](*launch.arguments, **launch.switches, **launch.options)


def _run_on(index: int, launch) -> None:
    _, (width, height), arguments, switches, _, key = launch
    key = index, key
    found = _kernels.get(key)
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    # A profiler's hooks need facts of every launch that only Triton knows.
    if found is None or getattr(enter, "calls", enter) or getattr(leave, "calls", leave):
        _keep(key, run_by_triton(launch))
        return
    stream = torch._C._cuda_getCurrentRawStream(index)
    found.run(
        width, height, 1, stream, found.function, found.packed_metadata, None, None, None,
        *arguments, *switches.values(),
    )  # fmt: skip


def _keep(key: tuple, kernel: object) -> None:
    if _AS_KNOWN and torch.version.hip is None:
        if len(_kernels) >= _MOST:
            _kernels.clear()
        _kernels[key] = kernel
