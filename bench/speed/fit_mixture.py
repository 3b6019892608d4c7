"""Time of the mixture fit, beside eager torch and torch.compile.

python -m bench.speed.fit_mixture [--device cuda] [--out FILE]
"""

from bench.speed.baselines import autograd_fit, compiled, eager_fit
from bench.speed.cases import FLOOR, SHAPES, Case, Sets, input_sets, step_moments, yardsticks
from bench.speed.figures import main, measured
from bench.speed.machine import Machine
from gms_fast import ops

BYTES = 28  # mean, var, third in; weight, mean_a, mean_b, var out


def closed(sets: Sets, fit: str) -> Case:
    return Case(f"fit_mixture {fit}", lambda *t: ops.fit_mixture(*t, FLOOR, fit=fit), sets, BYTES, checked=True)


def rivals(sets: Sets) -> list[Case]:
    def fit(*moments):
        return eager_fit(*moments, FLOOR)

    return [
        Case("eager closed fit", fit, sets, BYTES),
        Case("torch.compile of the closed fit", compiled(fit), sets, BYTES),
    ]


def measure(machine: Machine, shape: str, runs: int) -> dict[str, object]:
    sets = input_sets(step_moments, SHAPES[shape], machine)
    base = yardsticks(sets)
    slow = [closed(sets, "adan"), Case("released-style autograd fit", lambda *t: autograd_fit(*t, 70), sets, 24)]
    ours = [closed(sets, fit) for fit in ("exact", "free", "gaussian")]
    return measured(machine, shape, [*base, *ours, *rivals(sets)], [*base, *slow], runs) | {"op": "fit_mixture"}


if __name__ == "__main__":
    main(__doc__, measure)
