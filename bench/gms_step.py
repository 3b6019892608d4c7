"""Time of the fused step beside its rivals: `python bench/gms_step.py [--device cuda] [--shape cifar] [--out FILE]`."""

import torch
from bars import Bar, ratio
from baselines import compiled, ddpm_step, eager_step, released_step
from cases import SHAPES, STEP, Case, Inputs, cast, input_sets, noise_moments, yardsticks
from figures import main, measured, ridge
from torch import Tensor

from gms_fast import ops

EXACT, ADAN, RELEASED = "gms_step exact/sample", "gms_step adan/sample", "released-style autograd fit"
DDPM = "eager DDPM update"
FITS = (("exact", "sample"), ("exact", "element"), ("free", "sample"), ("free", "element"))


def fused(sets: list[Inputs], fit: str, component: str, **options: object) -> Case:
    """gms_step in the dtypes of the sets."""
    bytes_ = sum(t.element_size() for t in sets[0]) + sets[0][0].element_size()
    options = {"fit": fit, "component": component, **options}
    name = f"gms_step {fit}/{component}"
    return Case(name, lambda *t: ops.gms_step(*t, STEP, **options), sets, bytes_, checked=True)


def gaussian(sets: list[Inputs]) -> Case:
    """SN-DDPM: the same kernel without a third moment."""
    return fused([t[:3] for t in sets], "gaussian", "sample")._replace(
        run=lambda x, e1, e2: ops.gms_step(x, e1, e2, None, STEP, fit="gaussian")
    )


def narrow(sets: list[Inputs]) -> list[Case]:
    """exact/sample with bfloat16 moments and float32 state, with bfloat16 output too where the op takes it, and all
    in bfloat16."""
    half = torch.bfloat16
    mixed, low = fused(cast(sets, torch.float32, half), "exact", "sample"), fused(cast(sets, half, half), *FITS[0])
    cases = [mixed._replace(name=f"{EXACT}, bfloat16 moments"), low._replace(name=f"{EXACT}, bfloat16")]
    out = torch.empty_like(sets[0][0], dtype=half)

    def into(x: Tensor, *moments: Tensor) -> Tensor:
        """float64, which the gate asks for, keeps its width."""
        return ops.gms_step(x, *moments, STEP, out=out if x.dtype == torch.float32 else None)

    name = f"{EXACT}, bfloat16 moments and output"
    return [*cases, mixed._replace(name=name, run=into, bytes=mixed.bytes - 2)]


def rivals(sets: list[Inputs]) -> list[Case]:
    cases = [
        Case(DDPM, lambda x, e1, *_: ddpm_step(x, e1, STEP), sets, 12),
        Case("eager closed fit", lambda *t: eager_step(*t, STEP), sets, 20),
    ]
    if fast := compiled(lambda x, e1: ddpm_step(x, e1, STEP), *sets[0][:2]):
        cases.append(Case("torch.compile of the DDPM update", lambda x, e1, *_: fast(x, e1), sets, 12))
    if fast_fit := compiled(lambda *t: eager_step(*t, STEP), *sets[0]):
        cases.append(Case("torch.compile of the closed fit", fast_fit, sets, 20))
    return cases


def measure(device: str, shape: str, runs: int) -> dict[str, object]:
    sets = input_sets(noise_moments, SHAPES[shape], device)
    base = yardsticks(sets)
    ours = [*(fused(sets, *fit) for fit in FITS), gaussian(sets), *narrow(sets)]
    slow = [
        fused(sets, "adan", "sample", moments="released"),
        Case(RELEASED, lambda *t: released_step(*t, STEP), sets, 20),
    ]
    result = measured(shape, [*base, *ours, *rivals(sets)], [*base, *slow], runs)
    return result | {"op": "gms_step", "ridge": ridge(sets, runs)}


def bars(rows: list[dict]) -> list[Bar]:
    return [
        *ratio(rows, EXACT, "torch.randn_like", 0.8, 0.4, at_most=True),
        *ratio(rows, EXACT, DDPM, 0.4, 0.2, at_most=True),
        *ratio(rows, RELEASED, EXACT, 1000, 2500, at_most=False),
        *ratio(rows, RELEASED, ADAN, 30, 60, at_most=False),
    ]


if __name__ == "__main__":
    main(__doc__, measure, bars)
