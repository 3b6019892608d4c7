"""Time of a linear step with noise: `python bench/affine_noise.py [--device cuda] [--shape cifar] [--out FILE]`."""

import torch
from baselines import compiled, eager_affine
from cases import SHAPES, Case, Inputs, cast, input_sets, normals, yardsticks
from figures import main, measured

from gms_fast import ops

WEIGHTS = (0.9, -0.4, 0.3, -0.1)  # of x and up to three terms
STD = 0.2


def fused(sets: list[Inputs], terms: int) -> Case:
    """The op on the first `terms` terms, in the dtypes of the sets."""
    used = [t[: terms + 1] for t in sets]
    bytes_ = sum(t.element_size() for t in used[0]) + used[0][0].element_size()

    def run(x, *rest):
        return ops.affine_noise(x, rest, WEIGHTS[: terms + 1], STD)

    return Case(f"affine_noise, terms: {terms}", run, used, bytes_, checked=True)


def rivals(sets: list[Inputs]) -> list[Case]:
    def affine(x, *terms):
        return eager_affine(x, terms, WEIGHTS[:3], STD)

    two = [t[:3] for t in sets]
    cases = [Case("eager, terms: 2", affine, two, 16)]
    if fast := compiled(affine, *two[0]):
        cases.append(Case("torch.compile, terms: 2", fast, two, 16))
    return cases


def measure(device: str, shape: str, runs: int) -> dict[str, object]:
    sets = input_sets(normals(4), SHAPES[shape], device)
    half = torch.bfloat16
    mixed, low = (fused(cast(sets, dtype, half), 2) for dtype in (torch.float32, half))
    cases = [
        *yardsticks(sets),
        *(fused(sets, terms) for terms in (1, 2, 3)),
        mixed._replace(name=f"{mixed.name}, bfloat16 terms"),
        low._replace(name=f"{low.name}, bfloat16"),
        *rivals(sets),
    ]
    return measured(shape, cases, [], runs) | {"op": "affine_noise"}


if __name__ == "__main__":
    main(__doc__, measure)
