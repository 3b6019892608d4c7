"""Choose a solver and its settings from earlier results, or by comparing candidates on data."""

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

_LEVELS = (0.7, 1.2, 2.3, 4.4)  # Teleport levels, in units of `Known.spread`
_SPACINGS = ("uniform", "0.7", "1.2")
_SHARES = (8, 4, 2, 1)  # divisors of `samples` in each round; one candidate in three continues
_COMPONENTS = 24
_LEAST = 400  # fewest samples: 50 in the first round


class Trial(NamedTuple):
    """Candidate solver and the distance between its samples and the data.

    Attributes:
        text: Solver string.
        steps: Number of steps to pass to [`sample`][gms_fast.sample] so that the solver makes the requested number of
            network evaluations.
        samples: Number of samples drawn. Poor candidates are dropped in early rounds, so they have fewer samples.
        distance: Frechet distance between the features of the samples and of the data, restricted to the leading
            principal components of the data's features.

    Examples:
        >>> trial = gms_fast.recommendation.Trial("er-sde", steps=10, samples=1600, distance=0.7)
        >>> trial.text
        'er-sde'
    """

    text: str
    steps: int
    samples: int
    distance: float


class Recommendation(NamedTuple):
    """Solver recommended for a given number of network evaluations, ready for `sample`.

    Printing a recommendation shows the solver, the reason and all trials.

    Attributes:
        text: Solver string. If it does not name a statistics file, the one in the model's folder is used. The name
            "given" stands for statistics that were passed as an object and therefore have no file.
        solver: The same solver as a [`Solver`][gms_fast.solvers.Solver] object.
        steps: Number of steps to pass to [`sample`][gms_fast.sample].
        reason: Short reason for the choice.
        trials: Candidates that were compared, best first. Empty if no data was given.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> found = gms_fast.recommend(model, "digits", 5)
        >>> gms_fast.sample(model, found.steps, solver=found.solver, n=2).shape
        torch.Size([2, 1, 8, 8])
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
    """Recommend a solver, a Teleport level and a time grid for a given number of evaluations.

    The Teleport level is the noise level at which [`Teleport`][gms_fast.solvers.Teleport] stops and the solver takes
    over.

    Without `data`, no samples are drawn. The recommendation is the solver that did best on digits (docs/quality.md),
    with a Teleport level proportional to sqrt(lambda_1), the standard deviation of the data along its first
    eigenvector.

    With `data`, candidates are compared by their samples. The candidates are all solvers whose statistics are
    available. Most of them are also tried after a `Teleport` to each of four noise levels, on each of three time grids.
    All candidates use the same noise. After each round, the best third continues with twice as many samples. The
    winner is the candidate with the smallest Frechet distance from the data.

    Args:
        model: See [`sample`][gms_fast.sample].
        statistics: A statistics object, a tuple of them, or the name or folder of a model with statistics files. A
            statistics object is a [`Gaussian`][gms_fast.statistics.Gaussian] (mean and covariance of the data), an
            [`EmpiricalModel`][gms_fast.statistics.EmpiricalModel] (measured on the network) or a
            [`GGDMTable`][gms_fast.solvers.GGDMTable] (solver coefficients learned for the network). Statistics files in
            the folder of `model` are used as well.
        calls: Number of network evaluations per sample, >= 1.
        data: Real samples (M, *shape) in the model's data range, preferably ones that the model was not trained on.
        features: Callable that maps images (N, *shape) to features (N, D), between which distances are measured.
            Defaults to the pixels. `gms_fast.search.load_features` loads a feature network for digits.
        schedule: See [`sample`][gms_fast.sample].
        prediction: See [`sample`][gms_fast.sample].
        clip: See [`sample`][gms_fast.sample].
        condition: Keyword arguments for the model. Tensors with `samples` rows are split into batches along with the
            samples.
        samples: Number of samples drawn for each candidate in the last round, >= 400. The first round draws an eighth
            of this number.
        batch_size: Largest number of samples in one network evaluation.
        seed: Seed of all samples.
        progress: Whether to show a progress bar on stderr.

    Returns:
        Recommendation: the solver, its number of steps, and the trials.

    Raises:
        ValueError: If an argument is out of range (the message begins with its name), or if statistics belong to
            another model or other data.
        TypeError: If an argument has the wrong type.
        FileNotFoundError: If `statistics` names a model or folder without statistics files.

    Note:
        With `data`, the network evaluates about 11 x `samples` x `calls` single states in total.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> found = gms_fast.recommend(model, "digits", 5)
        >>> found.text
        'teleport:statistics=digits,until=7.4,spacing=1.2 then dpm-solver-v3:statistics=digits,trust=-2'
        >>> x = gms_fast.sample(model, found.steps, solver=found.solver, n=2)
    """
    said = describe(model, schedule, prediction, clip)
    known = known_of(model, statistics, said.built(), positive("calls", calls))
    if data is None:
        if features is not None:
            raise ValueError("data must be given with features: without data, no candidates are compared")
        return _preferred(known, model, said.clip)
    shape, device = check_data(model, data), device_of(model, data)
    if len(data) < measures.LEAST:
        raise ValueError(f"data must have at least {measures.LEAST} samples: got {len(data)}")
    if condition is not None and not isinstance(condition, dict):
        raise TypeError(
            f"condition must be a dict of keyword arguments for the model, or None: got {type(condition).__name__}"
        )
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
    reason = f"nearest to the data by {seen_by}, among {len(drawn)} candidates"
    return Recommendation(nearest.text, best.solver, best.steps, reason, tuple(trial for trial, _ in ended))


def _preferred(known: Known, model: Any, clip: tuple[float, float] | None) -> Recommendation:
    """Return the best solver by docs/quality.md among those whose tables are available.

    Raises ValueError if these tables belong to another model.
    """
    ranked = [(LEARNED_TABLE, "a table learned for this number of calls")] if known.calls >= 10 else []
    if known.spread is not None:
        ranked += [
            (known.behind(TRUSTED, 4.4 if known.calls > 3 else 1.2, "1.2"), "nearest to the data in few network calls"),
            (known.behind(ER_SDE, 2.3, "uniform"), "nearest to the data without network statistics"),
        ]
    ranked += [
        (TRUSTED, "nearest to the data without Teleport"),
        (ER_SDE, "nearest to the data without Teleport or network statistics"),
    ]
    suitable = ((choice, reason, made) for choice, reason in ranked if (made := known.solver(choice)))
    choice, reason, (solver, steps) = next(suitable, None) or _none(known)
    if (shape := attribute(model, "sample_shape")) is not None:
        solver.check(model, shape, clip)
    return Recommendation(choice.text(known.names), solver, steps, f"{reason}, on digits (docs/quality.md)", ())


def _none(known: Known) -> NoReturn:
    raise ValueError(f"calls must be fewer than the number of times in the schedule: got {known.calls}")


def _suitable(known: Known, check: Callable[[Solver], None]) -> Iterator[tuple[Choice, Solver, int]]:
    """Yield the candidates with their solvers and steps: alone, then after a Teleport.

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
    """Frechet distance from data along the leading principal components of its features.

    Few samples have a well-defined covariance in these few dimensions.
    """

    def __init__(self, real: Tensor) -> None:
        real = real.double()
        self.centre = real.mean(0)
        _, _, axes = torch.linalg.svd(real - self.centre, full_matrices=False)
        self.axes = axes[:_COMPONENTS].T
        self.real = (real - self.centre) @ self.axes

    def __call__(self, features: Tensor) -> float:
        """Return the distance of features (N, D); its upward bias falls with N."""
        return measures.frechet_distance((features.double() - self.centre) @ self.axes, self.real)


class _Drawn:
    """Candidate with the features of its samples so far."""

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
    """Draw more samples of a candidate, up to `samples` in all."""
    for start in range(sum(map(len, one.features)), samples, batch_size):
        n = min(batch_size, samples - start)
        try:
            one.features.append(look(draw(start, n, one.solver, one.steps)))
        except ValueError as error:  # too few moments, no signal at the first time, or an infinite state
            one.failed = error
            return


def _part(value: Any, samples: int, start: int, n: int) -> Any:
    """Return the rows of a condition that belong to n samples from `start` on."""
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
    """Run the rounds; return all candidates with their last trial, best first."""
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
