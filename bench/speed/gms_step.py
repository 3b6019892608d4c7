"""Time of the fused GMS step, beside eager torch, torch.compile and the released fit.

python -m bench.speed.gms_step [--device cuda] [--out FILE]
"""

import torch
from torch import Tensor

from bench.speed.bars import Bar, ratio
from bench.speed.baselines import compiled, ddpm_step, eager_step, released_step
from bench.speed.cases import SHAPES, STEP, Case, Sets, cast, input_sets, noise_moments, with_output, yardsticks
from bench.speed.figures import main, measured, ridge
from bench.speed.machine import Machine
from gms_fast import ops

EXACT, FREE, ADAN = "gms_step exact/sample", "gms_step free/element", "gms_step adan/sample"
NARROW = f"{EXACT}, bfloat16 moments and output"
DDPM, COMPILED = "eager DDPM update", "torch.compile of the closed fit"
RELEASED = "released-style autograd fit"
FITS = (("exact", "sample"), ("exact", "element"), ("free", "sample"), ("free", "element"))


def fused(sets: Sets, fit: str, component: str, **options: object) -> Case:
    """Return gms_step in the dtypes of the sets."""
    bytes_ = sum(t.element_size() for t in sets[0]) + sets[0][0].element_size()
    options = {"fit": fit, "component": component, **options}
    name = f"gms_step {fit}/{component}"
    return Case(name, lambda *t: ops.gms_step(*t, STEP, **options), sets, bytes_, checked=True)


def gaussian(sets: Sets) -> Case:
    """Return SN-DDPM: the same kernel without a third moment."""
    return fused(sets.map(lambda inputs: inputs[:3]), "gaussian", "sample")._replace(
        run=lambda x, e1, e2: ops.gms_step(x, e1, e2, None, STEP, fit="gaussian")
    )


def narrow(sets: Sets) -> list[Case]:
    """Return exact/sample with narrow dtypes.

    These are bfloat16 moments with a float32 state, the same with bfloat16 output, and everything in bfloat16.
    """
    half = torch.bfloat16
    mixed, low = fused(cast(sets, torch.float32, half), *FITS[0]), fused(cast(sets, half, half), *FITS[0])

    def into(x: Tensor, e1: Tensor, e2: Tensor, e3: Tensor, out: Tensor) -> Tensor:
        return ops.gms_step(x, e1, e2, e3, STEP, out=out)

    return [
        mixed._replace(name=f"{EXACT}, bfloat16 moments"),
        low._replace(name=f"{EXACT}, bfloat16"),
        Case(NARROW, into, with_output(mixed.sets, half), mixed.bytes - 2, checked=True),
    ]


def rivals(sets: Sets) -> list[Case]:
    update, fit = compiled(lambda x, e1: ddpm_step(x, e1, STEP)), compiled(lambda *t: eager_step(*t, STEP))
    return [
        Case(DDPM, lambda x, e1, *_: ddpm_step(x, e1, STEP), sets, 12),
        Case("eager closed fit", lambda *t: eager_step(*t, STEP), sets, 20),
        Case("torch.compile of the DDPM update", lambda x, e1, *_: update(x, e1), sets, 12),
        Case(COMPILED, fit, sets, 20),
    ]


def released(sets: Sets) -> Case:
    return Case(RELEASED, lambda *t: released_step(*t, STEP), sets, 20)


def measure(machine: Machine, shape: str, runs: int) -> dict[str, object]:
    sets = input_sets(noise_moments, SHAPES[shape], machine)
    base = yardsticks(sets)
    ours = [*(fused(sets, *fit) for fit in FITS), gaussian(sets), *narrow(sets)]
    slow = [fused(sets, "adan", "sample", moments="released"), released(sets)]
    result = measured(machine, shape, [*base, *ours, *rivals(sets)], [*base, *slow], runs)
    return result | {"op": "gms_step", "ridge": ridge(machine, sets, runs)}


def bars(rows: list[dict]) -> list[Bar]:
    return [
        *ratio(rows, EXACT, "torch.randn_like", 0.8, 0.4, at_most=True),
        *ratio(rows, EXACT, DDPM, 0.4, 0.2, at_most=True),
        *ratio(rows, RELEASED, EXACT, 1000, 2500, at_most=False),
        *ratio(rows, RELEASED, ADAN, 30, 60, at_most=False),
    ]


if __name__ == "__main__":
    main(__doc__, measure, bars)
