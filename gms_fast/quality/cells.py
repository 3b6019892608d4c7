"""One cell of the quality matrix: so many samples of a model by a solver on a time grid, and what they measure."""

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
GUIDE = "guide"  # the control of cells with a strength
_AT_A_TIME = 100  # a network is fastest at some 64 to 128: `python -m bench.speed.network --batches`
SHOWN = 10


@dataclass(frozen=True)
class Cell:
    """model      a name of `subjects.names` or what `gms_fast.load` takes
    solver     text of a solver (`gms_fast.solvers.text`), "diffusers:solver_order=2", ... (`rivals`), or a control,
               "real" | "gaussian" | "guide"
    grid       "default" (the solver's own), "uniform", "log-snr", "angle" or an exponent, as in `schedule.timesteps`.
               "open 0.7" is that of a step more without its last time, from where there is little noise to remove
    steps      K; 0 for a control
    range      which samples: indices range * n .. (range + 1) * n - 1 of seed 0
    strength   between 0 and 1, as of `editing.stroke`: results from the strokes of `Subject.strokes`, each of which
               goes with the sample of its index; the grid begins where the strength says. None: samples from noise
    """

    model: str
    solver: str
    grid: str = "default"
    steps: int = 0
    range: int = 0
    strength: float | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The part of a record that says which cell it is of; nothing of a strength where there is none."""
        return {name: value for name, value in vars(self).items() if name != "strength" or value is not None}


@lru_cache(maxsize=4)
def gaussian(name: str | Path) -> Gaussian:
    """Statistics of an embedded model's data, of a file, or of a subject with exact moments."""
    exact = subjects.DATA_OF_EXACT.get(str(name))
    if exact is None:
        return load_gaussian(name)
    points = measured(data.load(exact).double())
    noise = subjects.BANDWIDTH**2
    return replace(points, eigenvalues=points.eigenvalues + noise, residual=points.residual + noise)


def _asked(
    solver: Solver, schedule: Schedule, grid: str, steps: int, t_max: float | None = None
) -> tuple[Solver, int | list[float]]:
    """The solver, and the steps or times to ask it for, so that it visits `grid`, from t_max on if that is given."""
    if grid == "default":
        return solver, steps if t_max is None else solver.times(schedule, steps, t_max=t_max)
    if isinstance(solver, Teleport):
        return replace(solver, spacing=literal(grid)), steps
    if grid.startswith(OPEN):
        return solver, schedule.timesteps(steps + 1, literal(grid.removeprefix(OPEN)), t_max)[:-1]
    return solver, schedule.timesteps(steps, literal(grid), t_max)


@torch.no_grad()
def samples(cell: Cell, subject: Subject, n: int) -> tuple[Tensor, int]:
    """(n samples, network calls each of them took)."""
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
    """(what draws so many samples from such an index on, network calls each of them takes)."""
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
    """The time that a cell with a strength begins at. Raises ValueError where there is none."""
    if cell.strength is None:
        return None
    if not 0 < cell.strength < 1:
        raise ValueError(f"strength must lie between 0, no noise, and 1, nothing but noise: got {cell.strength}")
    return editing.timesteps(subject.model, cell.steps, strength=cell.strength, solver=solver)[0]


def check(cell: Cell, n: int, subject: Subject) -> None:
    """Raise ValueError for a solver, grid, steps or strength that is none, for too few samples or real data to measure,
    and for strokes of what is no picture."""
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
    """Every measure that suits the data. Raises ValueError with the counts where samples are too few or not finite."""
    if x.shape[1:] != subject.reference.shape[1:]:
        raise ValueError(f"samples must be {tuple(subject.reference.shape[1:])} each: got {tuple(x.shape[1:])}")
    reach = 5 * float(subject.reference.abs().max())  # generous, for Gaussian controls; 0..255 is not [-1, 1]
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
    """The distance of results to the strokes they were made from, and of strokes to pictures; nothing of samples."""
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
    """The record of a cell: its fields, network calls, seconds, measures, and for images the first `SHOWN` samples.

    device  where a network draws, from noise and by solvers of this package; measures are taken on the CPU
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
