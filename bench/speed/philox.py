"""Time of counter-based noise, beside torch's.

python -m bench.speed.philox [--device cuda] [--out FILE]
"""

import torch

from bench.speed.cases import SHAPES, Case, Sets, cast, input_sets, normals, yardsticks
from bench.speed.figures import main, measured
from bench.speed.machine import Machine
from gms_fast import ops


def drawn(name: str, sets: Sets) -> Case:
    op, size = getattr(ops, name), sets[0][0].element_size()
    return Case(name, lambda x: op(x.shape, seed=0, device=x.device, dtype=x.dtype), sets, size, checked=True)


def measure(machine: Machine, shape: str, runs: int) -> dict[str, object]:
    sets = input_sets(normals(1), SHAPES[shape], machine)
    low = cast(sets, torch.bfloat16, torch.bfloat16)
    cases = [
        *yardsticks(sets),
        drawn("philox_normal", sets),
        drawn("philox_normal", low)._replace(name="philox_normal, bfloat16"),
        drawn("philox_uniform", sets),
        Case("torch.randn", lambda x: torch.randn(x.shape, device=x.device), sets, 4),
        Case("torch.rand", lambda x: torch.rand(x.shape, device=x.device), sets, 4),
    ]
    return measured(machine, shape, cases, [], runs) | {"op": "philox"}


if __name__ == "__main__":
    main(__doc__, measure)
