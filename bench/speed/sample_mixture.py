"""Time of mixture fit and draw in one pass, beside eager torch and torch.compile.

python -m bench.speed.sample_mixture [--device cuda] [--out FILE]
"""

import torch

from bench.speed.baselines import compiled, eager_draw, eager_gaussian, released_draw
from bench.speed.cases import FLOOR, SHAPES, Case, Sets, cast, input_sets, step_moments, yardsticks
from bench.speed.figures import main, measured
from bench.speed.machine import Machine
from gms_fast import ops

BYTES = 16  # mean, var, third in; one draw out


def drawn(sets: Sets, fit: str, component: str) -> Case:
    options = {"fit": fit, "component": component}
    name = f"sample_mixture {fit}/{component}"
    return Case(name, lambda *t: ops.sample_mixture(*t, FLOOR, **options), sets, BYTES, checked=True)


def fused(sets: Sets) -> list[Case]:
    half = torch.bfloat16
    mixed, low = (drawn(cast(sets, dtype, half), "exact", "element") for dtype in (torch.float32, half))
    return [
        *(drawn(sets, *options) for options in (("exact", "element"), ("exact", "sample"), ("free", "element"))),
        mixed._replace(name=f"{mixed.name}, bfloat16 var and third", bytes=12),
        low._replace(name=f"{low.name}, bfloat16", bytes=8),
    ]


def rivals(sets: Sets) -> list[Case]:
    def draw(*moments):
        return eager_draw(*moments, FLOOR)

    return [
        Case("eager draw from one Gaussian", lambda mean, var, _: eager_gaussian(mean, var), sets, 12),
        Case("eager closed fit and draw", draw, sets, BYTES),
        Case("torch.compile of the closed fit and draw", compiled(draw), sets, BYTES),
    ]


def measure(machine: Machine, shape: str, runs: int) -> dict[str, object]:
    sets = input_sets(step_moments, SHAPES[shape], machine)
    base = yardsticks(sets)
    slow = [Case("released-style autograd fit and draw", released_draw, sets, BYTES)]
    return measured(machine, shape, [*base, *fused(sets), *rivals(sets)], [*base, *slow], runs) | {
        "op": "sample_mixture"
    }


if __name__ == "__main__":
    main(__doc__, measure)
