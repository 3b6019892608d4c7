"""Predict the speed of gms_step on an H200 from compiled kernels, without a GPU.

Assumptions, also written to the JSON:
- an element takes the longer of moving its bytes and issuing its instructions; the two overlap perfectly;
- memory moves 4.2e12 bytes/s, as measured for a copy on an H200, and the kernel is compared with a copy;
- 132 multiprocessors issue 4 warp instructions (of 32 lanes) in 0.82 of the clocks each at 1.9 GHz, any instruction in
  one slot: ncu counted 0.76 to 0.84 there in kernels bound by instructions;
- instructions are counted on the longest path from entry to exit without a call or a loop, which are the slow paths of
  division and square root for extreme arguments. The path reads no output for guidance; in CUDA it includes the watch,
  which is optional;
- of the four warps of a CUDA block only the first draws the numbers that the block shares, and writes them to shared
  memory.

    python -m bench.gpu.predict [--out FILE.json]

The kernels are compiled ahead of time, and their machine code is read. Triton's are compiled by the real launcher with
its real options, CUDA's by nvcc with the flags of CMakeLists.txt.
"""

import argparse
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from unittest import mock

import torch

from bench.records.checkout import ROOT
from bench.records.record import environment, save
from bench.speed.cases import STEP, noise_moments

BANDWIDTH = 4.2e12
ISSUE = 132 * 4 * 0.82 * 1.9e9
VARIANTS = (("exact", "sample"), ("exact", "element"), ("free", "sample"), ("free", "element"))
_FULL, _HALF = torch.float32, torch.bfloat16
DTYPES = {  # dtypes of state, moments and output
    "float32": (_FULL, _FULL, _FULL),
    "bfloat16 moments": (_FULL, _HALF, _FULL),
    "bfloat16 moments and output": (_FULL, _HALF, _HALF),
    "bfloat16": (_HALF, _HALF, _HALF),
}
SHAPE = (2, 1 << 16)  # aligned as in the benchmark; the size does not matter
CUDA_GROUP, CUDA_WARPS = 8, 4  # csrc/cuda/kernel.cuh: elements of a thread, warps of a block
CUDA_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-DGMS_WITH_CUDA", f"-I{ROOT / 'csrc'}"]

Code = list[tuple[int, str]]  # (address, instruction) in order


def disassemble(binary: Path, architecture: str = "sm_90") -> dict[str, Code]:
    """Return the machine code of each kernel in a cubin or object file, by its mangled name."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    text = subprocess.run(
        [tool, "-sass", "-arch", architecture, binary], capture_output=True, text=True, check=True
    ).stdout
    kernels = {}
    for part in re.split(r"\n\s*Function : ", text)[1:]:
        name, _, body = part.partition("\n")
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", body)
        kernels[name.strip()] = [(int(a, 16), code.strip()) for a, code in lines]
    return kernels


def main_path(code: Code, without: Sequence[str] = (), loads: int | None = None) -> int:
    """Count the instructions on the longest path from entry to exit.

    Args:
        code: Machine code of a kernel.
        without: Opcodes that the path avoids, besides calls and loops.
        loads: Most loads from memory on the path; None: any number.
    """
    order = {address: i for i, (address, _) in enumerate(code)}
    opcodes = [text.split()[1 if text.startswith("@") else 0].split(".")[0] for _, text in code]
    shunned = {"CALL", "RET", *without}
    left_out = {i for i, opcode in enumerate(opcodes) if opcode in shunned}
    targets = {i: order[int(code[i][1].split()[-1], 16)] for i, opcode in enumerate(opcodes) if opcode == "BRA"}
    for i, target in targets.items():
        if target < i:
            left_out.update(range(target, i + 1))
    most = opcodes.count("LDG") if loads is None else loads
    longest = [[float("-inf")] * (most + 1) for _ in range(len(code) + 1)]  # [place][loads left]
    for i, left in product(reversed(range(len(code))), range(most + 1)):
        rest = left - (opcodes[i] == "LDG")
        if i in left_out or rest < 0:
            continue
        conditional = code[i][1].startswith("@")
        following = [] if opcodes[i] in ("EXIT", "BRA") and not conditional else [longest[i + 1][rest]]
        if targets.get(i, -1) > i:
            following.append(longest[targets[i]][rest])
        if opcodes[i] == "EXIT":
            following.append(0)
        longest[i][left] = 1 + max(following, default=float("-inf"))
    return int(longest[0][most])


def compile_cuda(source: Path, target: Path, architecture: int = 90) -> None:
    """Compile the kernels of a .cu file to a cubin; raise RuntimeError with nvcc's message."""
    command = ["nvcc", *CUDA_FLAGS, f"-arch=sm_{architecture}", "-cubin", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile: {done.stderr.strip()}")


def cuda_instructions(kernels: dict[str, Code], fit: str, component: str, dtype: str) -> float:
    """Return the instructions of a warp per element in the CUDA kernel.

    It is the quick kernel for raw moments and a seed that is a number.
    """
    from gms_fast.ops import native

    state, moments, _ = DTYPES[dtype]
    types = native._DTYPES[state], native._DTYPES[moments]
    switches = (native._FITS[fit], 0, int(component == "element"), 0, *types)
    for name, code in kernels.items():
        values = re.findall(r"L(?:NS_\d\w+?E|b|S\d?_)(\d)E", name.partition("kernelI")[2])
        if "quick_step" in name and tuple(map(int, values[:6])) == switches:
            quads = 4 * CUDA_GROUP // 4  # 16-byte loads of x, e1, e2 and e3
            first, others = (main_path(code, shunned, quads) for shunned in ([], ["STS"]))
            return (first + (CUDA_WARPS - 1) * others) / CUDA_WARPS / CUDA_GROUP
    raise LookupError(f"no kernel for {fit}/{component}, {dtype}")


def triton_instructions(fit: str, component: str, dtype: str) -> float:
    """Return the instructions of a warp per element in the Triton kernel."""
    from gms_fast import kernels, ops
    from gms_fast.kernels.ahead import compile_ahead, launches

    state, moments, into = DTYPES[dtype]
    x, *rest = noise_moments(SHAPE, "cpu", 0)
    inputs = (x.to(state), *(t.to(moments) for t in rest))
    out = torch.empty(SHAPE, dtype=into)
    with mock.patch.object(ops.fused, "backend_of", return_value=kernels):
        (launch,) = launches(lambda: ops.gms_step(*inputs, STEP, fit=fit, component=component, out=out))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compile_ahead(launch, 90).asm["cubin"])
        file.flush()
        (code,) = disassemble(Path(file.name)).values()
    return 32 * main_path(code) * math.prod(launch.grid) * launch.options["num_warps"] / x.numel()


def row(backend: str, fit: str, component: str, dtype: str, instructions: float) -> dict[str, object]:
    """Predict the share of the copy bandwidth that gms_step reaches."""
    state, moments, into = DTYPES[dtype]
    size = state.itemsize + 3 * moments.itemsize + into.itemsize
    moving, issuing = size / BANDWIDTH, instructions / 32 / ISSUE
    return {
        "name": f"gms_step {fit}/{component}, {dtype}",
        "backend": backend,
        "bytes": size,
        "instructions": instructions,
        "picoseconds": 1e12 * max(moving, issuing),
        "of_copy": moving / max(moving, issuing),
        "bound by": "memory" if moving >= issuing else "instructions",
    }


def predict() -> list[dict[str, object]]:
    """Return the rows of Triton's kernels and, if nvcc is on PATH, of the CUDA kernels."""
    cases = [(fit, component, dtype) for fit, component in VARIANTS for dtype in DTYPES]
    rows = [row("triton", *case, triton_instructions(*case)) for case in cases]
    if shutil.which("nvcc") is None:
        print("nvcc is not on PATH: the CUDA kernels are left out")
        return rows
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "step.cubin"
        compile_cuda(ROOT / "csrc" / "cuda" / "step.cu", cubin)
        kernels = disassemble(cubin)
    return rows + [row("cuda", *case, cuda_instructions(kernels, *case)) for case in cases]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the predictions as JSON")
    args = parser.parse_args()
    rows = predict()
    print(f"{'predicted for an H200, an element':61} {'bytes':>5} {'instructions':>12} {'ps':>6} {'of copy':>8}")
    for r in rows:
        line = f"{r['backend']:6} {r['name']:54} {r['bytes']:5} {r['instructions']:12.1f} {r['picoseconds']:6.2f}"
        print(f"{line} {r['of_copy']:8.0%} {r['bound by']}")
    if args.out:
        assumed = {"assumptions": " ".join(__doc__.split("\n\n")[1].split())}
        save(args.out, {"environment": environment(), **assumed, "rows": rows})


if __name__ == "__main__":
    main()
