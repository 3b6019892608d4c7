"""What to expect of an H200 where none is at hand: `python bench/predict.py [--out bench/results/h200_predicted.json]`.

The Triton kernel of gms_step is compiled ahead of time, by the real launcher and with its real options, and its machine
code is read. Assumptions, also written to the JSON:
- an element takes the longer of moving its bytes and issuing its instructions; the two overlap perfectly;
- memory moves 4.0e12 bytes/s, about what a copy reaches of the nominal 4.8e12, and a copy is what the kernel is
  compared with;
- 132 multiprocessors issue 4 warp instructions (of 32 lanes) a clock each at 1.755 GHz, any instruction in one slot;
- instructions are those of the longest path from entry to exit without a call: the calls are the slow paths of division
  and square root, for arguments near the ends of the float32 range.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

import torch

BANDWIDTH = 4.0e12
ISSUE = 132 * 4 * 1.755e9
VARIANTS = (("exact", "sample"), ("exact", "element"), ("free", "sample"))
_FULL, _HALF = torch.float32, torch.bfloat16
DTYPES = {  # of the state, the moments and the output
    "float32": (_FULL, _FULL, _FULL),
    "bfloat16 moments": (_FULL, _HALF, _FULL),
    "bfloat16 moments and output": (_FULL, _HALF, _HALF),
    "bfloat16": (_HALF, _HALF, _HALF),
}
SHAPE = (2, 1 << 16)  # as aligned as the benchmark's; its size does not matter


def disassemble(cubin: bytes) -> list[tuple[int, str]]:
    """(address, instruction) in order."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    return [(int(a, 16), code.strip()) for a, code in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", text)]


def main_path(code: list[tuple[int, str]]) -> int:
    """Instructions on the longest path from entry to exit that makes no call; branches back are not taken."""
    order = {address: i for i, (address, _) in enumerate(code)}
    longest: list[float] = [float("-inf")] * (len(code) + 1)
    for i in reversed(range(len(code))):
        address, text = code[i]
        opcode = text.split()[1 if text.startswith("@") else 0].split(".")[0]
        following = [] if opcode in ("EXIT", "BRA") and not text.startswith("@") else [longest[i + 1]]
        if opcode == "BRA" and (target := int(text.split()[-1], 16)) > address:
            following.append(longest[order[target]])
        if opcode == "EXIT":
            following.append(0)
        longest[i] = float("-inf") if opcode in ("CALL", "RET") else 1 + max(following, default=float("-inf"))
    return int(longest[0])


def predict(fit: str, component: str, dtype: str) -> dict[str, object]:
    """Share of the copy bandwidth that gms_step would reach."""
    from cases import STEP, noise_moments

    from gms_fast import kernels, ops
    from gms_fast.kernels.ahead import compile_ahead, launches

    state, moments, into = DTYPES[dtype]
    x, *rest = noise_moments(SHAPE, "cpu", 0)
    inputs = (x.to(state), *(t.to(moments) for t in rest))
    out = torch.empty(SHAPE, dtype=into)
    with mock.patch.object(ops.library, "_backend", return_value=kernels):
        (launch,) = launches(lambda: ops.gms_step(*inputs, STEP, fit=fit, component=component, out=out))
    instructions = main_path(disassemble(compile_ahead(launch, 90).asm["cubin"]))
    issued = instructions * launch.grid[0] * launch.options["num_warps"] / x.numel()
    size = sum(t.element_size() for t in (*inputs, out))
    moving, issuing = size / BANDWIDTH, issued / ISSUE
    return {
        "name": f"gms_step {fit}/{component}, {dtype}",
        "bytes": size,
        "instructions": 32 * issued,  # an element
        "picoseconds": 1e12 * max(moving, issuing),
        "of_copy": moving / max(moving, issuing),
        "bound by": "memory" if moving >= issuing else "instructions",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the predictions as JSON")
    args = parser.parse_args()
    rows = [predict(fit, component, dtype) for fit, component in VARIANTS for dtype in DTYPES]
    print(f"{'predicted for an H200, an element':54} {'bytes':>5} {'instructions':>12} {'ps':>6} {'of copy':>8}")
    for row in rows:
        line = f"{row['name']:54} {row['bytes']:5} {row['instructions']:12.1f} {row['picoseconds']:6.2f}"
        print(f"{line} {row['of_copy']:8.0%} {row['bound by']}")
    if args.out:
        from timing import environment

        assumed = {"assumptions": " ".join(__doc__.split("\n\n")[1].split())}
        args.out.write_text(json.dumps({"environment": environment(), **assumed, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
