"""A solver and its settings for a network and a number of calls, by what was measured before or by trial."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from gms_fast.assumptions import UNSAID, attribute, describe
from gms_fast.quality import measures
from gms_fast.recommendation.choices import BEHIND, ER_SDE, LEARNED_TABLE, TRUSTED, V3, Choice, Known, known_of
from gms_fast.sampling import sample
from gms_fast.schedules import Schedule
from gms_fast.search.checks import check_data, check_features, device_of, frozen, positive
from gms_fast.search.features import Features, pixels, seen
from gms_fast.solvers import Solver
from gms_fast.solvers.text import Table
from gms_fast.types import NoiseMoments

_LEVELS = (0.7, 1.2, 2.3, 4.4)  # where jumps end, in units of `Known.spread`
_SPACINGS = ("uniform", "0.7", "1.2")
_SHARES = (8, 4, 2, 1)  # of the samples that each round looks at; of its candidates one in three goes on
_COMPONENTS = 24
_LEAST = 400  # samples: 50 in the first round


class Trial(NamedTuple):
    """A candidate, and how far its samples are from the data.

    text      of the solver
    steps     for `gms_fast.sample`, so that the network is called as often as was asked for
    samples   how many were looked at: the fewer, the sooner it was left
    distance  Frechet distance of their features from those of data, along the leading principal components of these
    """

    text: str
    steps: int
    samples: int
    distance: float


class Recommendation(NamedTuple):
    """A solver for a number of network calls: `gms_fast.sample(model, found.steps, solver=found.solver)`.

    text    of the solver; tables without a name in it are those beside the model, and "given" is one that lies nowhere
    solver  the same, ready
    steps   for `gms_fast.sample`
    reason  why this one
    trials  the candidates that were tried, the best first; none where no data was given
    """

    text: str
    solver: Solver
    steps: int
    reason: str
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        rows = [f"  {t.distance:9.4g} from {t.samples:5} samples  {t.text}" for t in self.trials]
        return "\n".join([f"{self.text}, {self.steps} steps: {self.reason}", *rows])


def recommend(
    model: Callable[[Tensor, Tensor], Tensor | NoiseMoments],
    statistics: Any,
    calls: int,
    *,
    data: Tensor | None = None,
    features: Features | None = None,
    schedule: Schedule | str | None = None,
    prediction: str | None = None,
    clip: tuple[float, float] | str | None = UNSAID,
    condition: dict[str, Any] | None = None,
    samples: int = 1600,
    batch_size: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> Recommendation:
    """The solver, jump and grid whose samples come nearest to the data in so many calls of the network.

    With `data` candidates are tried: solvers that suit the tables at hand, by themselves and behind a `Teleport` to
    four levels, on three grids. All draw from the same noise; the third of them with the least distance goes on, with
    twice the samples. Without `data` nothing is drawn: the choice is what docs/quality.md found best on digits,
    with levels in units of sqrt(lambda_1), the standard deviation along the data's first eigenvector.

    statistics  of the data, a `Gaussian`, of the network, an `EmpiricalModel`, or learned for it, a `GGDMTable`;
                several in a tuple, or the name or folder of a model beside which they lie. What lies beside the model
                itself is known too
    calls       of the network for a sample
    data        real samples (M, *shape) in the units of the network, best some that it was not trained on
    features    callable (N, *shape) -> (N, D), or pixels; `gms_fast.search.load_features` for digits
    schedule, prediction, clip  as in `gms_fast.sample`
    condition   keywords for the network; tensors of `samples` rows go with their samples
    samples     of the candidates that are tried to the end; the first round has an eighth of them
    Takes some 11 `samples` `calls` rows through the network. Raises ValueError or TypeError naming the argument.
    """
    said = describe(model, schedule, prediction, clip)
    known = known_of(model, statistics, said.built(), positive("calls", calls))
    if data is None:
        if features is not None:
            raise ValueError("data must be given with features: without it nothing is tried")
        return _preferred(known, model, said.clip)
    shape, device = check_data(model, data), device_of(model, data)
    if len(data) < measures.LEAST:
        raise ValueError(f"data must be at least {measures.LEAST} samples: got {len(data)}")
    if condition is not None and not isinstance(condition, dict):
        raise TypeError(f"condition must be keywords for the network, or None: got {type(condition).__name__}")
    see = pixels if features is None else features
    check_features(see, shape, device, torch.float32)
    batch_size = positive("batch_size", batch_size)
    if positive("samples", samples) < _LEAST:
        raise ValueError(f"samples must be at least {_LEAST}: got {samples}")
    options: dict[str, Any] = {"schedule": schedule, "prediction": prediction, "clip": said.clip, "shape": shape}

    def draw(start: int, n: int, solver: Solver, steps: int) -> Tensor:
        own = {name: _part(value, samples, start, n) for name, value in (condition or {}).items()}
        where: dict[str, Any] = {"n": n, "sample_offset": start, "condition": own or None}
        return sample(model, steps, solver=solver, seed=seed, device=device, **where, **options)

    with torch.no_grad(), frozen(model, see):
        look = partial(seen, see)
        distance = _Distance(torch.cat([look(part.to(device)) for part in data.split(batch_size)]))
        suitable = _suitable(known, lambda solver: solver.check(model, shape, said.clip))
        drawn = [_Drawn(choice, solver, steps) for choice, solver, steps in suitable] or _none(known)
        ended = _rounds(drawn, partial(_extend, draw, look, batch_size), distance, samples, known.names, progress)
    (nearest, best), seen_by = ended[0], "pixels" if features is None else "features"
    reason = f"nearest to the data, by its {seen_by}, of {len(drawn)} that were tried"
    return Recommendation(nearest.text, best.solver, best.steps, reason, tuple(trial for trial, _ in ended))


def _preferred(known: Known, model: Any, clip: tuple[float, float] | None) -> Recommendation:
    """The choice of docs/quality.md among those whose tables are at hand. Raises ValueError where these are not of the
    model.
    """
    ranked = [(LEARNED_TABLE, "a table learned for so many calls, which pays from 10 on")] if known.calls >= 10 else []
    if known.spread is not None:
        ranked += [
            (known.behind(TRUSTED, 4.4 if known.calls > 3 else 1.2, "1.2"), "nearest to the data in few calls"),
            (known.behind(ER_SDE, 2.3, "uniform"), "nearest without statistics of the network"),
        ]
    ranked += [(TRUSTED, "nearest without a jump"), (ER_SDE, "nearest without a jump or statistics of the network")]
    suitable = ((choice, reason, made) for choice, reason in ranked if (made := known.solver(choice)))
    choice, reason, (solver, steps) = next(suitable, None) or _none(known)
    if (shape := attribute(model, "sample_shape")) is not None:
        solver.check(model, shape, clip)
    return Recommendation(choice.text(known.names), solver, steps, f"{reason}, on digits (docs/quality.md)", ())


def _none(known: Known) -> NoReturn:
    raise ValueError(f"calls must be fewer than the times of the schedule: got {known.calls}")


def _suitable(known: Known, check: Callable[[Solver], None]) -> Iterator[tuple[Choice, Solver, int]]:
    """The candidates, their solvers and steps: solvers by themselves, then behind jumps.

    Raises ValueError for tables of another model or other data.
    """
    choices = [LEARNED_TABLE, V3, *BEHIND]
    if known.spread is not None:
        choices += [known.behind(*given) for given in product(BEHIND, _LEVELS, _SPACINGS)]
    for choice in dict.fromkeys(choices):
        if made := known.solver(choice):
            check(made[0])
            yield choice, *made


class _Distance:
    """Frechet distance from data along the leading principal components of its features, in which few samples have a
    covariance too.
    """

    def __init__(self, real: Tensor) -> None:
        real = real.double()
        self.centre = real.mean(0)
        _, _, axes = torch.linalg.svd(real - self.centre, full_matrices=False)
        self.axes = axes[:_COMPONENTS].T
        self.real = (real - self.centre) @ self.axes

    def __call__(self, features: Tensor) -> float:
        """The distance of features (N, D), biased upwards the less the larger N is."""
        return measures.frechet_distance((features.double() - self.centre) @ self.axes, self.real)


class _Drawn:
    """A candidate with the features of its samples so far."""

    def __init__(self, choice: Choice, solver: Solver, steps: int) -> None:
        self.choice, self.solver, self.steps = choice, solver, steps
        self.features: list[Tensor] = []
        self.failed: ValueError | None = None

    def trial(self, names: Mapping[Table, str], distance: Callable[[Tensor], float]) -> Trial:
        features = torch.cat(self.features)
        return Trial(self.choice.text(names), self.steps, len(features), distance(features))


def _extend(
    draw: Callable[..., Tensor], look: Callable[[Tensor], Tensor], batch_size: int, one: _Drawn, samples: int
) -> None:
    """Draw more of a candidate, until there are so many."""
    for start in range(sum(map(len, one.features)), samples, batch_size):
        n = min(batch_size, samples - start)
        try:
            one.features.append(look(draw(start, n, one.solver, one.steps)))
        except ValueError as error:  # too few moments, no signal at the first time, a step that goes beyond all numbers
            one.failed = error
            return


def _part(value: Any, samples: int, start: int, n: int) -> Any:
    """The rows of a condition that go with some samples."""
    rows = isinstance(value, Tensor) and value.ndim > 0 and len(value) == samples
    return value[start : start + n] if rows else value


def _rounds(
    drawn: list[_Drawn],
    extend: Callable[[_Drawn, int], None],
    distance: Callable[[Tensor], float],
    samples: int,
    names: Mapping[Table, str],
    progress: bool,
) -> list[tuple[Trial, _Drawn]]:
    """All candidates as far as each came, the best first."""
    left, ended = drawn, list[tuple[Trial, _Drawn]]()
    for share in _SHARES:
        for one in tqdm(left, disable=not progress, desc=f"{samples // share} samples", unit="solver"):
            extend(one, samples // share)
        failed, left = [one.failed for one in left if one.failed], [one for one in left if not one.failed]
        if failed and not left:
            raise failed[0]
        ranked = sorted(((one.trial(names, distance), one) for one in left), key=lambda pair: pair[0].distance)
        going = len(ranked) if share == 1 else max(2, math.ceil(len(ranked) / 3))
        ended = ranked[0 if share == 1 else going :] + ended
        left = [one for _, one in ranked[:going]]
    return ended
