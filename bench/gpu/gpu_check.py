"""Build, test and measure gms_fast on a GPU, or rehearse that without one.

    python -m bench.gpu.gpu_check [--sanitize] --out DIR    on a GPU
    python -m bench.gpu.gpu_check --rehearse                without one

The first command builds gms_fast with its CUDA kernels, tests it and measures it in less than 8 minutes, the most
important parts first. With --sanitize, compute-sanitizer checks every op instead, in less than 4 minutes. A rehearsal
runs the same parts on tiny shapes, with the CUDA kernels compiled for a CPU and Triton's interpreted.

DIR gets gpu.json (measurements, and the outcome of each part), gpu.txt (all output) and junit-*.xml; or sanitize.json
and sanitize.txt. Exit status: 0 every part passed, 1 some did not, 2 nothing could be measured, 128 + N ended by
signal N.
"""

import argparse
import os
import shutil
import signal
import sys
import sysconfig
from datetime import date
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.parts import SECONDS, Part, Session
from bench.records import checkout
from bench.records.checkout import ROOT

TESTS = ROOT / "tests"
APART = ("test_cuda.py", "test_triton.py")  # test files with parts of their own
ELSEWHERE = ("/usr/local/cuda/bin", "/usr/local/nvidia/bin")  # folders of tools that PATH may lack


class Plan:
    """Parts of both commands, or of their rehearsal."""

    def __init__(self, out: Path, commit: str | None, rehearse: bool) -> None:
        self.out, self.commit, self.rehearse = out, commit, rehearse
        self.folder = ROOT / "build" / ("rehearsal" if rehearse else "gpu_check")
        self.package = self.folder / "package"

    def environment(self) -> dict[str, str]:
        """Return the environment, in which the package built here comes before any installed one."""
        modules = [str(self.package), *([str(ROOT)] if self.rehearse else []), os.environ.get("PYTHONPATH", "")]
        interpret = "1" if self.rehearse else "0"
        return {"PATH": search_path(), "PYTHONPATH": ":".join(filter(None, modules)), "TRITON_INTERPRET": interpret}

    def gpu(self) -> list[Part]:
        return [
            self.preflight(),
            self.copy(),
            *self.warm_up(),
            *self.build(110),
            self.tests("tests-cuda", 30, 4, *self.cuda_tests()),
            self.rows("rows-cuda", 70, "cuda", "stream", "host"),
            self.rows("rows-triton", 70, "triton", "stream", "host"),
            self.tests("tests-graphs", 40, 4, *self.other_tests()),
            self.tests("tests-triton", 50, 12, *self.triton_tests()),
            self.rows("rest-cuda", 40, "cuda", "graphs", "rest"),
            *([] if self.rehearse else [self.rows("rest-triton", 35, "triton", "graphs", "rest")]),
        ]

    def sanitize(self) -> list[Part]:
        """Return the parts of --sanitize.

        racecheck tests the uniform number of a sample, the only value that threads share.
        """
        watched = [self.watched(tool, 42) for tool in ("memcheck", "racecheck", "initcheck")]
        return [self.preflight(), self.copy(), *self.build(80), *watched]

    def preflight(self) -> Part:
        return Part("preflight", self.script("preflight", "--out", self.out / "part.json"), 15, vital=True)

    def copy(self) -> Part:
        """Copy gms_fast without its compiled module into a folder on PYTHONPATH.

        Triton needs no more than that.
        """
        return Part("copy", self.setup("build_py"), 10, vital=True)

    def build(self, seconds: float) -> list[Part]:
        """Build the compiled module, without CUDA kernels if these do not compile.

        Triton can then still be compared with C++.
        """
        target = self.package / "gms_fast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        command = [*self.module("rehearsal"), target] if self.rehearse else self.setup("build_ext")
        both = Part("build", command, seconds, environment={"GMS_FAST_CUDA": "1"})
        return [both, both._replace(name="build-cpu", seconds=0, environment={"GMS_FAST_CUDA": "0"}, unless="build")]

    def warm_up(self) -> list[Part]:
        """Compile Triton's kernels while nvcc runs; only the cache of these runs is used."""
        rows = self.gpu_rows("triton", 0 if self.rehearse else 120, self.folder / "warm-up.json", "stream")
        tests = self.pytest(8, *self.triton_tests())
        return [Part("warm-rows", rows, 0, beside=True), Part("warm-tests", tests, 0, beside=True)]

    def rows(self, name: str, seconds: float, backend: str, *groups: str) -> Part:
        command = self.gpu_rows(backend, SECONDS, self.out / "part.json", *groups)
        return Part(name, command, seconds, keep=backend, timed=True)

    def tests(self, name: str, seconds: float, workers: int, *arguments: object) -> Part:
        report = f"--junitxml={self.out}/junit-{name}.xml"
        return Part(name, self.pytest(workers, report, *arguments), seconds)

    def watched(self, tool: str, seconds: float) -> Part:
        """Run every op of the CUDA backend under a tool of compute-sanitizer.

        Each tensor gets its own allocation.
        """
        sanitizer = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", "--print-limit", "20"]
        command = [*([] if self.rehearse else sanitizer), *self.script("every_op", "--backend", "cuda")]
        return Part(tool, command, seconds, environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})

    def cuda_tests(self) -> list[object]:
        return [TESTS / "ops" / "test_cuda.py", *(["-p", "bench.gpu.rehearsal"] if self.rehearse else [])]

    def triton_tests(self) -> list[object]:
        return [TESTS / "ops" / "triton_parity.py", *(["-k", "philox"] if self.rehearse else [])]

    def other_tests(self) -> list[object]:
        """Return arguments that select tests marked gpu.

        Files without such tests are left out, because their imports may not be installed.
        """
        files = [file for file in sorted(TESTS.rglob("test_*.py")) if "mark.gpu" in file.read_text()]
        chosen = ["-k", "on_a_cpu"] if self.rehearse else ["-m", "gpu"]
        return [*(file for file in files if file.name not in APART), *chosen]

    def setup(self, command: str) -> list[object]:
        folders = ["--build-lib", self.package, *(["--build-temp", self.folder] if command == "build_ext" else [])]
        return [sys.executable, "setup.py", command, *folders]

    def module(self, name: str) -> list[object]:
        return [sys.executable, "-m", f"bench.gpu.{name}"]

    def script(self, name: str, *arguments: object) -> list[object]:
        return [*self.module(name), *arguments, *(["--rehearse"] if self.rehearse else [])]

    def gpu_rows(self, backend: str, seconds: object, out: Path, *groups: str) -> list[object]:
        where = ["--backend", backend, "--seconds", seconds, "--out", out, "--parts", *groups]
        return self.script("gpu_rows", *where, *(["--commit", self.commit] if self.commit else []))

    def pytest(self, workers: int, *arguments: object) -> list[object]:
        """Return a pytest command.

        -v makes the log of a stopped run show its progress. -P keeps the repository's root, where gms_fast has no
        kernels, off the path.
        """
        options = ["-v", "--color=no", "--tb=short", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
        if find_spec("xdist"):  # survives tests that crash or hang without handling signals
            options += ["-n", min(workers, os.cpu_count()), "--dist", "worksteal"]
        if find_spec("pytest_timeout"):
            options += ["--timeout", 90]
        return [sys.executable, "-P", "-m", "pytest", *options, *arguments]


def search_path() -> str:
    """Return PATH, completed by folders where tools may be."""
    here = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    return ":".join([os.environ.get("PATH", os.defpath), *here, *ELSEWHERE])


def leave(number: int, _frame: object) -> None:
    """Exit through every `finally`, so that parts are stopped and measurements are written."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "session", help="folder for all results")
    parser.add_argument("--commit", help="commit that is measured, if git cannot tell")
    parser.add_argument("--sanitize", action="store_true", help="run every op under compute-sanitizer instead")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="these parts only, and those that all others need")
    parser.add_argument("--rehearse", action="store_true", help="run without a GPU")
    args = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    name, commit = "sanitize" if args.sanitize else "gpu", args.commit or checkout.commit()
    plan = Plan(args.out.resolve(), commit, args.rehearse)
    parts = [p for p in getattr(plan, name)() if p.vital or args.parts is None or p.name in args.parts]
    budget = sum(p.seconds for p in parts) * (3 if args.rehearse else 1)  # other processes may share the CPU
    print(f"commit {commit or 'unknown: git cannot tell, and --commit does not'}; at most {budget:.0f} s:")
    print(*(f"  {p.name:14} {'until rows are timed' if p.beside else f'{p.seconds:.0f} s'}" for p in parts), sep="\n")
    if any(p.name == "build" for p in parts):  # never measure an older build
        shutil.rmtree(plan.package, ignore_errors=True)
    record = {"date": date.today().isoformat(), "commit": commit, "rehearsal": args.rehearse}
    session = Session(plan.out, name, budget, plan.environment(), record)
    failed = session.run(parts)
    print(f"did not pass: {', '.join(failed)}" if failed else "every part passed", f"(all output: {session.log})")
    return 2 if any(p.vital and p.name in failed for p in parts) else 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
