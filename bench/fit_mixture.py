"""Time of the mixture fit: `python bench/fit_mixture.py [--device cuda] [--shape cifar] [--out FILE]`."""

from baselines import autograd_fit, compiled, eager_fit
from cases import FLOOR, SHAPES, Case, Inputs, input_sets, step_moments, yardsticks
from figures import main, measured

from gms_fast import ops

BYTES = 28  # mean, var, third in; weight, mean_a, mean_b, var out


def closed(sets: list[Inputs], fit: str) -> Case:
    return Case(f"fit_mixture {fit}", lambda *t: ops.fit_mixture(*t, FLOOR, fit=fit), sets, BYTES, checked=True)


def rivals(sets: list[Inputs]) -> list[Case]:
    def fit(*moments):
        return eager_fit(*moments, FLOOR)

    cases = [Case("eager closed fit", fit, sets, BYTES)]
    if fast := compiled(fit, *sets[0]):
        cases.append(Case("torch.compile of the closed fit", fast, sets, BYTES))
    return cases


def measure(device: str, shape: str, runs: int) -> dict[str, object]:
    sets = input_sets(step_moments, SHAPES[shape], device)
    base = yardsticks(sets)
    slow = [closed(sets, "adan"), Case("released-style autograd fit", lambda *t: autograd_fit(*t, 70), sets, 24)]
    ours = [closed(sets, fit) for fit in ("exact", "free", "gaussian")]
    return measured(shape, [*base, *ours, *rivals(sets)], [*base, *slow], runs) | {"op": "fit_mixture"}


if __name__ == "__main__":
    main(__doc__, measure)
