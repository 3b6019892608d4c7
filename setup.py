"""Build gms_fast._C with CMake and ninja, and install kernels/ as gms_fast.kernels.

Metadata is in pyproject.toml.

GMS_FAST_CUDA = auto | 1 | 0   compile the CUDA kernels; auto (the default) means: where nvcc is on PATH and torch, if
                               it can be seen from here, is a build for CUDA
CUDAARCHS                      GPU architectures to compile for, instead of those in CMakeLists.txt
GMS_FAST_PURE = 1              build no compiled module at all
"""

import importlib.util
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OTHERWISE = "or set GMS_FAST_PURE=1 to do without the compiled kernels"
COMPILERS = ("c++", "g++", "clang++", "icpx", "cl")  # that CMake looks for


def torch_is_for_cpus() -> bool:
    """Tell a torch that was built without CUDA, without importing it, which takes seconds."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False  # an isolated build sees no torch: nvcc decides
    version = Path(found.origin).with_name("version.py")
    return version.exists() and runpy.run_path(str(version)).get("cuda") is None


def nvcc() -> str | None:
    """The CUDA compiler that CMake finds."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def wants_cuda() -> bool:
    """Raises SystemExit where the kernels are asked for and cannot be compiled."""
    choice = os.environ.get("GMS_FAST_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"GMS_FAST_CUDA must be auto, 0 or 1: got {choice!r}")
    if choice == "1" and nvcc() is None:
        raise SystemExit(
            "GMS_FAST_CUDA=1 asks for the CUDA kernels, but there is no nvcc on PATH: install the CUDA toolkit, or "
            "name its compiler in CUDACXX"
        )
    if choice == "auto" and nvcc() is not None and torch_is_for_cpus():
        print("the CUDA kernels are left out: this torch is built without CUDA (GMS_FAST_CUDA=1 compiles them)")
        return False
    return choice == "1" or (choice == "auto" and nvcc() is not None)


def missing_tool() -> str | None:
    """Name what the build lacks and how to get it; None if it lacks nothing."""
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            return f"{tool} is missing: pip install {tool}"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is missing: pip install pybind11"
    named = shlex.split(os.environ.get("CXX", ""))
    if named and shutil.which(named[0]) is None:
        return f"the C++ compiler that CXX names is missing, {named[0]}: install it, or name another"
    if not named and not any(map(shutil.which, COMPILERS)):
        return "a C++ compiler is missing: install one (on Debian and Ubuntu: apt install g++), or name it in CXX"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python.h is missing: install Python's headers (on Debian and Ubuntu: apt install python3-dev)"
    return None


def run(command: list[str], doing: str) -> None:
    """Run a command, whose own words are shown. Raises SystemExit where it fails."""
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"{doing} failed, as said above ({error}): a C++17 compiler is needed, CXX names another; {OTHERWISE}"
        ) from None


def check_tools() -> None:
    """Raise SystemExit naming what a build of the compiled module lacks."""
    if lacks := missing_tool():
        raise SystemExit(f"{lacks}; {OTHERWISE}")


class Build(build):
    def run(self) -> None:
        if self.distribution.has_ext_modules():
            check_tools()  # before all that is copied is listed
            wants_cuda()
        super().run()


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        check_tools()
        import pybind11

        folder = Path(self.build_temp).resolve() / ext.name
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        ninja = shutil.which("ninja")
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DGMS_WITH_CUDA={'ON' if wants_cuda() else 'OFF'}",
            *([f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
        ]
        run(configure, "configuring the compiled kernels")
        run(["cmake", "--build", str(folder)], "compiling the kernels")


pure = os.environ.get("GMS_FAST_PURE") == "1"
native_sources = ["CMakeLists.txt", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*") if p.is_file())]
kernel_packages = ["gms_fast.kernels", *(f"gms_fast.kernels.{p}" for p in find_packages("kernels"))]

if __name__ == "__main__":  # a test asks for the rule above
    setup(
        packages=find_packages(include=["gms_fast", "gms_fast.*"]) + kernel_packages,
        package_dir={"gms_fast.kernels": "kernels"},
        include_package_data=False,  # or MANIFEST.in, which is for the source distribution, would count here too
        package_data={
            "gms_fast": ["py.typed", "*.pyi"],
            "gms_fast.quality": ["classifiers/*.safetensors", "classifiers/*.md"],
            "gms_fast.search": ["networks/*.safetensors", "networks/*.md"],
            "gms_fast.models": ["*/*.safetensors", "*/*.json", "*/*.md", "*/*.csv"],
        },
        ext_modules=[] if pure else [Extension("gms_fast._C", sources=[], depends=native_sources)],
        cmdclass={"build": Build, "build_ext": CMakeBuild},
    )
