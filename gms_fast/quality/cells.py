"""One cell of the quality matrix: samples of a model by a solver, and their measures."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gms_fast
from gms_fast import data, editing
from gms_fast.measure.gaussian import gaussian as measured
from gms_fast.quality import classifier, measures, rivals, subjects
from gms_fast.quality.subjects import Subject
from gms_fast.schedules import Schedule
from gms_fast.solvers import Solver, Teleport
from gms_fast.solvers.text import COVARIANCE, build, literal, parse
from gms_fast.tables import Gaussian
from gms_fast.tables.gaussian import load_gaussian

OPEN = "open "
CONTROLS = ("real", "gaussian")
GUIDE = "guide"  # the control for cells with a strength
_AT_A_TIME = 100  # networks are fastest at batches of 64 to 128: `python -m bench.speed.network --batches`
SHOWN = 10


@dataclass(frozen=True)
class Cell:
    """Settings of one evaluation.

    Args:
        model: A name of `subjects.names`, or anything that `gms_fast.load` takes.
        solver: Text of a solver (`gms_fast.solvers.text`), text of another library's sampler (`rivals`) such as
            "diffusers:solver_order=2", or a control: "real", "gaussian" or "guide".
        grid: "default" (the solver's own), "uniform", "log-snr", "angle" or an exponent, as in `schedule.timesteps`.
            "open 0.7" is the grid of one more step without its last time. It ends where little noise is left to remove.
        steps: Number of steps K; 0 for a control.
        range: Samples to draw: indices range * n .. (range + 1) * n - 1 of seed 0.
        strength: Strength of `editing.stroke`, between 0 and 1. Results are made from the strokes of `Subject.strokes`
            with the same indices, and the grid begins at the strength's time. None: samples are drawn from noise.
    """

    model: str
    solver: str
    grid: str = "default"
    steps: int = 0
    range: int = 0
    strength: float | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """Return the part of a record that identifies its cell, without a strength of None."""
        return {name: value for name, value in vars(self).items() if name != "strength" or value is not None}


@lru_cache(maxsize=4)
def gaussian(name: str | Path) -> Gaussian:
    """Load Gaussian statistics of embedded data, of a file, or of a subject with exact moments."""
    exact = subjects.DATA_OF_EXACT.get(str(name))
    if exact is None:
        return load_gaussian(name)
    points = measured(data.load(exact).double())
    noise = subjects.BANDWIDTH**2
    return replace(points, eigenvalues=points.eigenvalues + noise, residual=points.residual + noise)


def _asked(
    solver: Solver, schedule: Schedule, grid: str, steps: int, t_max: float | None = None
) -> tuple[Solver, int | list[float]]:
    """Return the solver with the steps or times that make it use `grid`, from `t_max` if given."""
    if grid == "default":
        return solver, steps if t_max is None else solver.times(schedule, steps, t_max=t_max)
    if isinstance(solver, Teleport):
        return replace(solver, spacing=literal(grid)), steps
    if grid.startswith(OPEN):
        return solver, schedule.timesteps(steps + 1, literal(grid.removeprefix(OPEN)), t_max)[:-1]
    return solver, schedule.timesteps(steps, literal(grid), t_max)


@torch.no_grad()
def samples(cell: Cell, subject: Subject, n: int) -> tuple[Tensor, int]:
    """Draw n samples; return them with the network calls that each took."""
    if cell.solver == GUIDE:
        return subject.strokes(n, cell.range * n), 0
    if cell.solver in CONTROLS:
        return getattr(subject, cell.solver)(n, cell.range), 0
    draw, calls = _drawer(cell, subject)
    size = _AT_A_TIME if subject.control is not None else n
    parts = [draw(min(size, n - start), cell.range * n + start) for start in range(0, n, size)]
    return torch.cat(parts).cpu(), calls


def _solver(cell: Cell) -> Solver:
    return build(cell.solver, origin=cell.model, steps=cell.steps, load={COVARIANCE: gaussian})


def _drawer(cell: Cell, subject: Subject) -> tuple[Callable[[int, int], Tensor], int]:
    """Return a function (count, first index) that draws samples, and the network calls of each."""
    schedule = subject.model.schedule
    name, given, _ = parse(cell.solver)
    if name == rivals.NAME:
        if cell.strength is not None:
            raise ValueError(f"strength is for solvers of this package: got {cell.strength} for {cell.solver}")
        spacing = None if cell.grid == "default" else literal(cell.grid)
        times = schedule.timesteps(cell.steps, spacing=spacing)
        rivals.scheduler(given, schedule)
        return lambda n, start: rivals.samples(given, subject, times, n, start), rivals.calls(given, times)
    solver = _solver(cell)
    solver, wanted = _asked(solver, schedule, cell.grid, cell.steps, _first(cell, subject, solver))
    steps, times = (wanted, None) if isinstance(wanted, int) else (len(wanted) - 1, wanted)

    def draw(n: int, start: int) -> Tensor:
        x_T = None
        if cell.strength is not None:
            x_T = editing.noised(
                subject.model, subject.strokes(n, start), strength=cell.strength, sample_offset=start, clip=subject.clip
            )
        return gms_fast.sample(
            subject.model, steps, solver=solver, n=n, timesteps=times, x_T=x_T, sample_offset=start, clip=subject.clip,
            dtype=subject.dtype, condition=subject.condition(n, start),
        )  # fmt: skip

    return draw, solver.calls(schedule, solver.times(schedule, wanted))


def _first(cell: Cell, subject: Subject, solver: Solver) -> float | None:
    """Return the first time of a cell's grid, or None without a strength.

    Raises ValueError for a strength outside (0, 1).
    """
    if cell.strength is None:
        return None
    if not 0 < cell.strength < 1:
        raise ValueError(f"strength must lie between 0, no noise, and 1, nothing but noise: got {cell.strength}")
    return editing.timesteps(subject.model, cell.steps, strength=cell.strength, solver=solver)[0]


def check(cell: Cell, n: int, subject: Subject) -> None:
    """Check that a cell can be evaluated.

    Raises ValueError for a wrong solver, grid, steps or strength, for too few samples or real data to measure, and for
    strokes of data that are not images.
    """
    least = max(measures.LEAST, _classifier(subject.features).width + 1 if subject.features else 0)
    if n < least:
        raise ValueError(f"n must be at least {least} samples for these measures: got {n}")
    for name, real in (("reference", subject.reference), ("control", subject.control)):
        if real is not None and len(real) < least:
            raise ValueError(
                f"data must hold at least {2 * least} samples, half of them as {name}: got {len(real)} there"
            )
    if cell.solver == GUIDE or cell.strength is not None:
        subject.strokes(1, 0)
    if cell.solver not in (*CONTROLS, GUIDE):
        _drawer(cell, subject)


def measure(x: Tensor, subject: Subject) -> dict[str, float]:
    """Return all measures that suit the data, by name.

    Raises ValueError with the counts if samples are too few or not finite.
    """
    if x.shape[1:] != subject.reference.shape[1:]:
        raise ValueError(f"samples must be {tuple(subject.reference.shape[1:])} each: got {tuple(x.shape[1:])}")
    reach = 5 * float(subject.reference.abs().max())  # wide enough for Gaussian controls, but finds 0..255
    if wild := int((x.flatten(1).abs() > reach).any(1).sum()):
        raise ValueError(f"samples must be in the data's units: {wild} of {len(x)} go beyond {reach:.3g}")
    flat, real = x.flatten(1), subject.reference.flatten(1)
    if flat.shape[1] == 1:
        return {"wasserstein": measures.wasserstein(flat, real)}
    found = {"energy": measures.energy_distance(flat, real), "sliced": measures.sliced_wasserstein(flat, real)}
    found |= dict(zip(("mean", "variance", "third"), measures.moment_errors(flat, real), strict=True))
    if subject.features is None:
        return found
    net = _classifier(subject.features)
    seen, real = net.features(x), _real_features(subject)
    found["frechet"] = measures.frechet_distance(seen, real)
    found["kernel"] = measures.kernel_distance(seen, real)
    found["precision"], found["recall"] = measures.precision_recall(seen, real)
    found["confident"] = float((net.confidence(seen) > 0.9).double().mean())
    return found


def faithful(cell: Cell, x: Tensor, subject: Subject) -> dict[str, float]:
    """Return the distance of results to their strokes, or of strokes to their images.

    Empty for a cell without strokes.
    """
    if cell.solver != GUIDE and cell.strength is None:
        return {}
    made_from = subject.pictures if cell.solver == GUIDE else subject.strokes
    return {"faithful": measures.faithfulness(x, made_from(len(x), cell.range * len(x)))}


@lru_cache(maxsize=2)
def _classifier(name: str) -> classifier.Classifier:
    return classifier.load(name)


def _real_features(subject: Subject) -> Tensor:
    return _classifier(subject.features).features(subject.reference)


def evaluate(
    cell: Cell,
    n: int,
    data: str | None = None,
    schedule: str | None = None,
    features: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Return the record of a cell and, for images of range 0, the first `SHOWN` samples.

    The record holds the cell's fields, network calls, seconds and measures.

    Args:
        cell: The cell.
        n: Number of samples.
        data: As in `subjects.build`.
        schedule: As in `subjects.build`.
        features: As in `subjects.build`.
        device: Where a network draws, for solvers of this package starting from noise. Measures use the CPU.
    """
    subject = subjects.build(cell.model, data, schedule, features)
    if device is not None:
        subject = replace(subject, model=subject.model.to(device))
    start = time.perf_counter()
    x, calls = samples(cell, subject, n)
    seconds = time.perf_counter() - start
    found = measure(x, subject) | faithful(cell, x, subject)
    record = {**cell.fields, "n": len(x), "calls": calls, "seconds": round(seconds, 1), **found}
    return {"record": record, "shown": x[:SHOWN].float().numpy() if x.ndim == 4 and cell.range == 0 else None}
