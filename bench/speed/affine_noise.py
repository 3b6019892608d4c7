"""Time of a linear step with noise, beside eager torch and torch.compile.

python -m bench.speed.affine_noise [--device cuda] [--out FILE]
"""

from collections.abc import Callable
from itertools import product

import torch

from bench.speed.bars import Bar, ratio
from bench.speed.baselines import compiled, eager_affine
from bench.speed.cases import SHAPES, Case, Sets, cast, input_sets, normals, yardsticks
from bench.speed.figures import main, measured
from bench.speed.machine import Machine
from gms_fast import ops

WEIGHTS = (0.9, -0.4, 0.3, -0.1)  # weights of x and up to three terms
STD = 0.2
THREE_TERMS = [  # (name, weights by element, standard deviation)
    (f"terms: 3{', weights by element' * by_element}{', no noise' * (not std)}", by_element, std)
    for by_element, std in product((False, True), (STD, 0.0))
]


def updates(op: Callable[..., torch.Tensor], *numbers: object) -> Callable[..., torch.Tensor]:
    return lambda x, *terms: op(x, terms, *numbers)


def fused(sets: Sets, terms: int) -> Case:
    """Return the op on the first `terms` terms, in the dtypes of the sets."""
    used = sets.map(lambda inputs: inputs[: terms + 1])
    bytes_ = sum(t.element_size() for t in used[0]) + used[0][0].element_size()
    run = updates(ops.affine_noise, WEIGHTS[: terms + 1], STD)
    return Case(f"affine_noise, terms: {terms}", run, used, bytes_, checked=True)


def three_terms(sets: Sets) -> list[Case]:
    """Return a multistep solver's update, by the op and in eager torch.

    The bytes do not count weights by element, which all samples share.
    """
    x = sets[0][0]
    rows = torch.randn((5, *x.shape[1:]), generator=torch.Generator(x.device).manual_seed(0), device=x.device)
    cases = []
    for name, by_element, std in THREE_TERMS:
        *weights, constant = rows if by_element else (*WEIGHTS, None)
        fast = updates(ops.affine_noise, rows if by_element else WEIGHTS, std)
        slow = updates(eager_affine, weights, std, constant)
        cases += [Case(f"affine_noise, {name}", fast, sets, 20, checked=True), Case(f"eager, {name}", slow, sets, 20)]
    return cases


def rivals(sets: Sets) -> list[Case]:
    two, affine = sets.map(lambda inputs: inputs[:3]), updates(eager_affine, WEIGHTS[:3], STD)
    return [
        Case("eager, terms: 2", affine, two, 16),
        Case("torch.compile, terms: 2", compiled(affine), two, 16),
    ]


def measure(machine: Machine, shape: str, runs: int) -> dict[str, object]:
    sets = input_sets(normals(4), SHAPES[shape], machine)
    half = torch.bfloat16
    mixed, low = (fused(cast(sets, dtype, half), 2) for dtype in (torch.float32, half))
    cases = [
        *yardsticks(sets),
        *(fused(sets, terms) for terms in (1, 2)),
        mixed._replace(name=f"{mixed.name}, bfloat16 terms"),
        low._replace(name=f"{low.name}, bfloat16"),
        *three_terms(sets),
        *rivals(sets),
    ]
    return measured(machine, shape, cases, [], runs) | {"op": "affine_noise"}


def bars(rows: list[dict]) -> list[Bar]:
    pairs = [(f"affine_noise, {name}", f"eager, {name}") for name, *_ in THREE_TERMS]
    return [bar for pair in pairs for bar in ratio(rows, *pair, 0.5, 0.25, at_most=True)]


if __name__ == "__main__":
    main(__doc__, measure, bars)
