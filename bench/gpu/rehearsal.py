"""GPU backends on a machine without a GPU, for `gpu_check --rehearse`.

    python -m bench.gpu.rehearsal TARGET

This builds the compiled module at TARGET, with its CUDA kernels compiled for one CPU thread by tests/cuda_shim. `begin`
then sends ops on CPU tensors through the kernels of a GPU backend. As a pytest plugin (`-p bench.gpu.rehearsal`) this
module makes the tests of the CUDA kernels run in the same way.
"""

import argparse
import subprocess
import sysconfig
from pathlib import Path

import torch

import gms_fast
from bench.records.checkout import ROOT
from gms_fast.ops import native

FLAGS = ["-std=c++17", "-O1", "-g1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wno-psabi", "-Wno-unknown-pragmas"]
FLAGS += ["-ffp-contract=off", "-fno-math-errno", "-DGMS_WITH_CUDA", "-DGMS_TABLE=kBaseline"]


def build(target: Path, *flags: str) -> None:
    """Compile csrc/ with g++ into a module at `target`, with additional compiler flags."""
    import pybind11

    with_avx2 = "avx2" in Path("/proc/cpuinfo").read_text()
    includes = [ROOT / "tests" / "cuda_shim", ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    sources = sorted(file for suffix in ("cpp", "cu") for file in (ROOT / "csrc").rglob(f"*.{suffix}"))
    command = ["g++", *FLAGS, *flags, *(["-mavx2", "-mfma"] if with_avx2 else []), *(f"-I{i}" for i in includes)]
    subprocess.run([*command, "-x", "c++", *map(str, sources), "-o", str(target)], check=True)


class OnDevice:
    """Module made by `build` whose ops treat CPU tensors as GPU tensors.

    With gpu=False they run on one thread of the CPU.
    """

    _OPS = ("gms_step", "sample_mixture", "fit_mixture", "linear_step", "philox")
    _OPS += ("new_gms_step", "new_sample_mixture", "new_fit_mixture", "new_linear_step")

    def __init__(self, module: object, gpu: bool = True) -> None:
        self.__dict__.update(vars(module))
        where = (True, 0) if gpu else (False, 1)
        for name in self._OPS:
            op = getattr(module, name)
            self.__dict__[name] = lambda gpu, threads, *rest, op=op: op(*where, *rest)


def begin(backend: str) -> None:
    """Send ops on CPU tensors through the kernels of a GPU backend until the process ends.

    "cuda" needs a module made by `build`. "triton" needs TRITON_INTERPRET=1 in the environment from the start.
    """
    if backend == "triton":
        gms_fast.set_backend("triton")
    elif native.with_cuda:
        native.compiled = OnDevice(native.compiled)
    else:
        raise RuntimeError(
            "the compiled module has no CUDA kernels: rehearse by python -m bench.gpu.gpu_check --rehearse"
        )


def pytest_configure() -> None:
    """Make tests find a GPU whose tensors stay on the CPU."""
    torch.cuda.is_available = lambda: True
    torch.Tensor.cuda = lambda tensor: tensor
    begin("cuda")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="the module to write")
    build(parser.parse_args().target)


if __name__ == "__main__":
    main()
