"""Host time of a call up to the Triton launch, on 16 elements without a GPU.

    python -m bench.speed.triton_call

A stand-in for Triton's driver receives the launches, and CPU tensors pass for GPU tensors. It prints microseconds of a
call, of the same call through Triton's own launcher, and of one whose backend does nothing. They are those of this
machine and are not stored. The driver's time for a launch comes on top. The bar is 12 microseconds for gms_step.
"""

import argparse
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest import mock

import torch

from bench.speed.call import calls, microseconds
from gms_fast import ops

STREAM = 7
DRIVER = SimpleNamespace(
    get_current_device=lambda: -1,  # the index of CPU tensors
    get_current_stream=lambda device: STREAM,
)


class Kernel:
    """Stand-in for a compiled kernel that records each run as (kernel, arguments)."""

    def __init__(self, runs: deque) -> None:
        self.function, self.packed_metadata, self._runs = id(self), (1, 1, 0), runs

    def launch_metadata(self, *arguments: object) -> None: ...

    def run(self, *arguments: object) -> None:
        self._runs.append((self, arguments))


@contextmanager
def stand_in() -> Iterator[deque]:
    """Make the ops take CPU tensors for GPU tensors and compile nothing; yield the last run."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import JITFunction, driver

    from gms_fast import kernels
    from gms_fast.kernels import direct, step

    runs: deque = deque(maxlen=1)

    def compiled(kernel, key, signature, device, *_):
        return kernel.device_caches[device][0].setdefault(key, Kernel(runs))

    with ExitStack() as stack:
        replace = lambda *names, **options: stack.enter_context(mock.patch.object(*names, **options))  # noqa: E731
        replace(DRIVER, "get_current_target", lambda: GPUTarget("cuda", 90, 32), create=True)
        replace(driver, "_active", DRIVER)
        replace(torch._C, "_cuda_getDevice", DRIVER.get_current_device, create=True)
        replace(torch._C, "_cuda_getCurrentRawStream", DRIVER.get_current_stream, create=True)
        replace(JITFunction, "_do_compile", compiled)
        replace(ops.fused, "backend_of", lambda *_: kernels)
        replace(direct, "_kernels", {})
        for kernel in (getattr(step, f"{name}_kernel") for name in ("step", "sample", "fit", "linear", "philox")):
            replace(kernel, "device_caches", defaultdict(kernel.create_binder))
        yield runs


def measure(runs: int) -> dict[str, tuple[float, float, float]]:
    """Time each op: as it is, through Triton's launcher, and up to the backend."""
    from gms_fast.kernels import direct, launch

    nothing = SimpleNamespace(**dict.fromkeys((*calls(), "philox"), lambda *_: None))
    to_nothing = lambda *_: nothing  # noqa: E731 - a mock costs as much as a call
    times = {}
    for name, call in calls().items():
        with stand_in():
            here = microseconds(call, runs)
            with mock.patch.object(launch, "_run", lambda found, like: direct.run_by_triton(found)):
                slowly = microseconds(call, runs)
            with mock.patch.object(ops.fused, "backend_of", to_nothing):
                times[name] = here, slowly, microseconds(call, runs)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="runs, of which the fastest counts")
    print(f"{'microseconds':16} {'a call':>8} {'by Triton':>10} {'without':>8}")
    for name, (here, slowly, nothing) in measure(parser.parse_args().runs).items():
        print(f"{name:16} {here:8.2f} {slowly:10.2f} {nothing:8.2f}")


if __name__ == "__main__":
    main()
