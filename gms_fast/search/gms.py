"""Search for the times and settings of GMS, with the loss of `gms_fast.search.ddss`.

The random choice of a mixture component and the integer times of a discrete schedule have no gradient. The search
therefore uses the Nelder-Mead simplex method instead of Adam. It draws the samples of every point with the same noise.
"""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gms_fast.assumptions import describe
from gms_fast.sampling import sample
from gms_fast.schedules import Schedule
from gms_fast.search.checks import check_data, check_features, device_of, frozen, positive
from gms_fast.search.ddss import HELD_OUT, TRAINED
from gms_fast.search.distance import distances
from gms_fast.search.features import Features, described, pixels, seen
from gms_fast.solvers import GMS
from gms_fast.storage import atomic, fingerprints, schema
from gms_fast.storage.configuration import check_same
from gms_fast.storage.locks import locked_file
from gms_fast.storage.reading import read_json, refusing
from gms_fast.storage.schema import Fields, Listed, Plain, Real
from gms_fast.tables.origin import fingerprint
from gms_fast.types import NoiseMoments

_FILE = Fields({"configuration": Fields({}, others=Plain()), "values": Listed(Real(infinite=True), 1_000_000)})
_CORNER = 0.3  # size of the first simplex, in the logarithm of every number


class Numbers:
    """Coordinates of the search, in which the starting point is 0.

    Each coordinate is the logarithm of a factor. The factor multiplies a gap between two times, `switch`, `clip_pixel`,
    or the odds of `weight`. Settings that the solver does not use have no coordinate.
    """

    def __init__(self, schedule: Schedule, solver: GMS, times: Sequence[float]) -> None:
        self.schedule, self.solver, self.times = schedule, solver, [float(t) for t in times]
        self.names = ["weight"] if solver.fit in ("exact", "free") else []
        self.names += ["switch"] if solver.covariance is not None and solver.switch != 0 else []
        self.names += ["clip_pixel"] if solver.clip_pixel else []

    def __len__(self) -> int:
        return len(self.times) - 1 + len(self.names)

    def __call__(self, point: np.ndarray) -> tuple[list[float], GMS]:
        """Return the times and the solver of a point.

        The times of a discrete schedule are rounded, and may then coincide.
        """
        first, last = self.times[0], self.times[-1]
        gaps = -np.diff(self.times) * np.exp(point[: len(self.times) - 1])
        inner = first - (first - last) * np.cumsum(gaps)[:-1] / gaps.sum()
        whole = hasattr(self.schedule, "T")
        times = [first, *(float(round(t) if whole else t) for t in inner), last]
        powers = zip(self.names, point[len(gaps) :], strict=True)
        changed: dict[str, Any] = {name: self._number(name, float(power)) for name, power in powers}
        return times, replace(self.solver, **changed)

    def _number(self, name: str, power: float) -> float:
        if name == "weight":
            odds = self.solver.weight / (1 - self.solver.weight) * math.exp(power)
            return odds / (1 + odds)
        first = self.solver.level if name == "switch" else getattr(self.solver, name)
        return first * math.exp(power)


def gms(
    model: Callable[[Tensor, Tensor], NoiseMoments],
    data: Tensor,
    steps: int,
    *,
    solver: GMS | None = None,
    spacing: str | float = "angle",
    features: Features | None = None,
    schedule: Schedule | str | None = None,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    kernel: str = "cubic",
    evaluations: int = 120,
    batch_size: int = 192,
    score_samples: int = 512,
    held_out: float = 0.2,
    chunk: int = 96,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> tuple[list[float], GMS]:
    """Find times and settings of GMS that bring samples as close to data as possible.

    The search varies the times between the first and the last, and up to three settings of the solver: `weight` if the
    fit uses it, `switch` if there is a covariance, and `clip_pixel`. It does not use gradients.

    Args:
        model: Model that returns the noise moments that GMS needs, as in [`sample`][gms_fast.sample].
        data: Floating-point samples (N, *shape) in the model's data range, N >= 4.
        steps: Number of steps >= 1.
        solver: [`GMS`][gms_fast.solvers.GMS] solver to start from. Defaults to `GMS()`.
        spacing: Spacing of the initial times, as in [`Schedule.grid`][gms_fast.schedules.Schedule.grid].
        features: Callable that maps images to features, as in [`ggdm`][gms_fast.search.ggdm]. Defaults to the pixels.
        schedule: Noise schedule of the model, or its name. Defaults to the model's attribute `schedule`.
        clip: Data range (lo, hi) to which E[x_0|x_t] is clipped, or None for no clipping.
        kernel: Kernel of the distance, "cubic" or "linear", as in
            [`KernelDistance`][gms_fast.search.KernelDistance].
        evaluations: Maximum number of points (combinations of times and settings) to try, >= 1.
        batch_size: Number of samples drawn for each point. All points use the same noise.
        score_samples: Number of samples drawn to compare the best point with the starting point on held-out data.
        held_out: Fraction of the data that is held out for this comparison, in (0, 1). The search uses the rest.
        chunk: Number of samples per network call, >= 1.
        seed: Seed of all random numbers, in [-2^63, 2^64).
        out: JSON file that stores the loss of every point. To resume an interrupted search, repeat the call. If None,
            nothing is written.
        progress: Whether to show a progress bar on stderr.

    Returns:
        Tuple (timesteps, solver) of arguments for [`sample`][gms_fast.sample]. If the best point does not score better
            than the starting point on held-out data, the starting point is returned.

    Raises:
        ValueError: If an argument is out of range, or if `out` contains a search with a different configuration.
        TypeError: If `solver` is not a GMS, or if `features` is not callable.
        ImportError: If SciPy is not installed: `pip install "gms-fast[quality]"`.

    Examples:
        >>> model, data = gms_fast.load("digits"), gms_fast.data.load("digits")[:64]
        >>> times, solver = gms_fast.search.gms(model, data, 2, evaluations=3, batch_size=4,
        ...                                     score_samples=4, progress=False)
        >>> len(times)
        3
        >>> gms_fast.sample(model, solver=solver, timesteps=times, n=2).shape
        torch.Size([2, 1, 8, 8])
    """
    from scipy.optimize import minimize

    schedule = describe(model, schedule, "noise").built()
    solver = GMS() if solver is None else solver
    if not isinstance(solver, GMS):
        raise TypeError(f"solver must be a GMS: got {solver!r}")
    shape, features = check_data(model, data), pixels if features is None else features
    numbers = Numbers(schedule, solver, schedule.timesteps(positive("steps", steps), spacing))
    device = device_of(model, data)
    counts = {"evaluations": evaluations, "batch_size": batch_size, "score_samples": score_samples, "chunk": chunk}
    counts = {name: positive(name, value) for name, value in counts.items()}
    check_features(features, shape, device, torch.float32)
    known = solver.covariance
    configuration = {
        "times": numbers.times,
        "solver": {name: value for name, value in vars(solver).items() if name != "covariance"},
        "covariance": known and fingerprints.of_tensors([known.mean, known.eigenvectors, known.eigenvalues]),
        "network": fingerprint(model),
        "data": fingerprints.of_tensors([data.float()]),
        "features": described(features),
        **{"clip": clip, "kernel": kernel, "batch_size": batch_size, "held_out": held_out, "seed": seed},
    }
    path = None if out is None else Path(out)

    @torch.no_grad()
    def drawn(point: np.ndarray, n: int, offset: int) -> Tensor | None:
        times, chosen = numbers(point)
        if any(not a > b for a, b in pairwise(times)):
            return None
        draw = partial(sample, model, solver=chosen, timesteps=times, seed=seed, schedule=schedule, shape=shape)
        sizes = [(start, min(chunk, n - start)) for start in range(0, n, chunk)]
        parts = [draw(n=size, sample_offset=offset + start, clip=clip, device=device) for start, size in sizes]
        return torch.cat(parts)

    def see(images: Tensor) -> Tensor:
        return torch.cat([seen(features, part.to(device)) for part in images.split(chunk)])

    held = nullcontext() if path is None else locked_file(path)
    bar = tqdm(total=evaluations, disable=not progress, desc="search")
    with torch.no_grad(), frozen(model, features), held, bar:
        values = _Values(path, configuration)
        loss, score = distances(see, data, kernel=kernel, held_out=held_out, seed=seed)

        def judged(by: Callable[[Tensor], Tensor], point: np.ndarray, n: int, offset: int) -> float:
            x = drawn(point, n, offset)
            return math.inf if x is None else float(by(x))

        def evaluate(point: np.ndarray) -> float:
            found = values.next(lambda: judged(loss, point, batch_size, TRAINED))
            bar.set_postfix(loss=f"{found:.4g}", best=f"{min(values.known):.4g}", refresh=False)
            bar.update()
            return found

        zero = np.zeros(len(numbers))
        signs = np.where(np.arange(len(zero)) < steps / 2, -1, 1)  # first gaps shorter, last ones longer
        simplex = np.vstack([zero, _CORNER * np.eye(len(zero)) * signs])
        options = {"maxfev": evaluations, "initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-6}
        best = minimize(evaluate, zero, method="Nelder-Mead", options=options).x
        before, after = (judged(score, p, score_samples, HELD_OUT) for p in (zero, best))
    return numbers(best if after < before else zero)


class _Values:
    """Values of the evaluated points in order, kept in a file if there is one.

    The order is the same in every run, so a resumed search reads its first values from the file.
    """

    def __init__(self, path: Path | None, configuration: dict[str, Any]) -> None:
        self.path, self.configuration = path, json.loads(json.dumps(configuration))
        self.known: list[float] = []
        self.stored: list[float] = []
        if path is not None and path.exists():
            with refusing(f"out: {path} was not written by a search", path):
                found = read_json(path, infinite=True)
                schema.check("", found, _FILE)
            stored, self.stored = found["configuration"], [float(v) for v in found["values"]]
            message = f"{path} was made with another configuration; choose another file"
            check_same(stored, self.configuration, message)

    def next(self, value: Callable[[], float]) -> float:
        """Return the next value, from the file as long as it has some."""
        place = len(self.known)
        self.known.append(self.stored[place] if place < len(self.stored) else value())
        if self.path is not None and place >= len(self.stored):
            atomic.write_text(self.path, json.dumps({"configuration": self.configuration, "values": self.known}))
        return self.known[-1]
