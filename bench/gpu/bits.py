"""Check that ops on a GPU draw the same bits as C++ on the CPU, for equal seed and input.

It makes a few calls of each op. The backends' parity tests compare many more.
"""

from itertools import product

import torch

from bench.gpu.targets import TARGETS
from bench.speed.cases import STEP, noise_moments
from bench.speed.gate import using
from bench.speed.machine import Gpu
from bench.speed.timing import dropping
from gms_fast import ops

SHAPE = (2, 3, 16, 16)
CALLS = {  # functions of x, e1, e2, e3
    "gms_step exact/sample": lambda *t: ops.gms_step(*t, STEP, fit="exact", component="sample", seed=1),
    "gms_step free/element": lambda *t: ops.gms_step(*t, STEP, fit="free", component="element", seed=1),
    "gms_step gaussian": lambda x, e1, e2, _: ops.gms_step(x, e1, e2, None, STEP, fit="gaussian", seed=1),
    "sample_mixture exact/element": lambda x, _, var, third: ops.sample_mixture(x, var.abs(), third, seed=1),
    "fit_mixture free": lambda x, _, var, third: ops.fit_mixture(x, var.abs(), third, fit="free"),
    "affine_noise": lambda x, *terms: ops.affine_noise(x, terms, (0.9, -0.4, 0.3, -0.1), 0.2, seed=1),
    "linear_step": lambda x, y, *terms: ops.linear_step(
        x, y, terms, (0.9, -0.4, 0.3, -0.1), 0.2, data=(1.1, -0.4), unconditional=x, guidance=2.0, seed=1
    ),
    "philox_normal": lambda x, *_: ops.philox_normal(x.shape, seed=1, device=x.device, dtype=x.dtype),
    "philox_uniform": lambda x, *_: ops.philox_uniform(x.shape, seed=1, device=x.device, dtype=x.dtype),
}


def bits(machine: Gpu) -> dict[str, object]:
    """Return the share of calls with equal results, and why the others differ."""
    dtypes, failed = (torch.float32, torch.bfloat16), {}
    for (name, call), dtype in product(CALLS.items(), dtypes):
        inputs = [t.to(dtype) for t in noise_moments(SHAPE, "cpu", 0)]
        with dropping(f"{name}, {dtype}", failed):
            with using(None, machine.device):
                expected = call(*inputs)
            found = call(*(t.to(machine.device) for t in inputs))
            torch.testing.assert_close(_on_cpu(found), _on_cpu(expected), rtol=0, atol=0)
    share = 1 - len(failed) / (len(CALLS) * len(dtypes))
    return {"bars": [TARGETS["bits"].reached(share)]} | ({"failed": failed} if failed else {})


def _on_cpu(result: torch.Tensor | tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [t.cpu() for t in (result if isinstance(result, tuple) else (result,))]
