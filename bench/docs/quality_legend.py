"""Explanations of the tables in the quality appendices."""

# ruff: noqa: RUF001  (the report writes noise levels with Greek letters)

from collections.abc import Iterable, Sequence
from typing import Any

from bench.docs import solver_names
from gms_fast.quality import rivals
from gms_fast.quality.cells import CONTROLS, GUIDE

Records = Sequence[dict[str, Any]]
MEASURES = {  # the keys are those of `quality_tables.MEASURES`
    "frechet": "Fréchet distance between the classifier features of the samples and of real digits.",
    "wasserstein": "Wasserstein-1 distance between the samples and the data, in units of the data.",
    "faithful": "Mean Euclidean distance between a result and its strokes, in units of the data. The row *the strokes* "
    "shows the distance between the strokes and the digits that they were painted from.",
    "kernel": "Squared maximum mean discrepancy between the classifier features of the samples and of real digits. "
    "The estimate is unbiased, so it can be negative.",
    "precision": "Share of samples whose features lie close to those of a real digit.",
    "recall": "Share of real digits whose features lie close to those of a sample.",
    "confident": "Share of samples that the classifier assigns to one class with more than 90 % confidence.",
    "energy": "Energy distance between the samples and the data, without features. "
    "The estimate is unbiased, so it can be negative.",
    "sliced": "Root mean square Wasserstein-2 distance between the samples and the data over random projections.",
    "mean": "Root mean square error of the samples' mean, over all elements of a sample.",
    "variance": "Root mean square error of the samples' variance, over all elements of a sample.",
    "third": "Root mean square error of the samples' third central moment, over all elements of a sample.",
}
GRIDS = {  # word in the name of a grid: its times
    "uniform": "The grid *uniform* has equal steps in time.",
    "power": "The grid *power p* has the times 999 (1 - (k/K)^p) for k = 0 to K.",
    "open": "An *open* grid is the grid of K + 1 steps without its last time, so it has no evaluation at t = 0.",
    "quadratic": "The grid *quadratic* has equal steps in the square root of time.",
    "angle": "The grid *angle* has equal steps in arctan(σ/α).",
    "log-SNR": "The grid *log-SNR* has equal steps in log(α/σ).",
    "its own": "The grid *its own* consists of the times that were learned with the coefficients.",
}
OPTIONS = {  # words in the name of a solver: their meaning
    "Teleport": "A *teleport* moves x_T to a lower noise level σ/α in closed form, with the data's mean and covariance "
    "and without the network. The solver and its grid begin there. "
    "If a row names no level, the teleport ends at a default level that depends on the solver and the data.",
    "free fit": "The *free fit* of GMS adjusts the weight of the mixture components where the third moment requires "
    "it.",
    "exact fit": "The *exact fit* of GMS keeps the weight of the mixture components fixed, at 1/3 unless the row "
    "names another.",
    "released optimiser": "The *released optimiser* fits the mixture iteratively, as the code released with the "
    "paper does. The value of `eps` in its solver string depends on the number of elements that are drawn in one call.",
    "shared component": "With a *shared component*, all elements of a sample draw the same mixture component. "
    "Otherwise each element draws its own.",
    "covariance": "GMS with *covariance* draws all pixels jointly at high noise levels, with the covariance of the "
    "data. At the stated noise level σ/α and below, it draws pixels independently. If a row states no level, "
    "the default applies.",
    "no final denoising": "*No final denoising* saves one evaluation and leaves the noise at the last time in the "
    "sample.",
    "as an ODE": "ER-SDE *as an ODE* adds no noise.",
    "trust": "DPM-Solver-v3 with *trust -2* uses its statistics only where log(α/σ) is at least -2.",
    "full order": "UniP with *full order at the end* does not lower its order in the last steps.",
    "GGDM": "*GGDM* uses coefficients and times that `gms-fast search` learned for this network and number of "
    "evaluations.",
}
SHOWN_CONTROLS = {
    "real": "*Real against real* is the score of real data compared with other real data.",
    "gaussian": "*Gaussian control* is the score of draws from a Gaussian with the mean and covariance of the data.",
    "guide": "The row *the strokes* shows the scores of the strokes themselves.",
}
EXACT = (
    "`clip_pixel=None` keeps the noise of the last step. It is set for the digits with exact moments, "
    "because these data contain noise themselves."
)
COUNTS = {1: "one set", 2: "two sets", 3: "three sets"}


def text(found: Records) -> str:
    """Return a list that explains everything the tables of these records use."""
    drawn = [r for r in found if r["solver"] not in (*CONTROLS, GUIDE)]
    names = [solver_names.name(r["solver"]) for r in drawn]
    grids = {solver_names.grid(r["grid"]) for r in drawn}
    steps = len({r["calls"] - r["steps"] for r in drawn}) == 1 or any("power" in grid for grid in grids)
    lines = [
        "NFE is the number of network evaluations for one sample." + " K is the number of steps." * steps,
        "Each cell shows the mean ± the standard deviation over the sets of samples. "
        "No deviation is shown where all sets give exactly the same value.",
        *_used({r["solver"] for r in found}, SHOWN_CONTROLS),
        *_used(grids, GRIDS),
        *_used(names, OPTIONS),
    ]
    if any("clip_pixel=None" in r["solver"] for r in drawn):
        lines.append(EXACT)
    return "\n".join(f"- {line}" for line in lines)


def strings(found: Records) -> str:
    """Return the sentences above the table of solver strings."""
    solvers = [(r["solver"], r["model"]) for r in found]
    line = "`gms_fast.sample` and the commands accept these solver strings"
    if any(solver.startswith(rivals.NAME) for solver, _ in solvers):
        line += f", except those with `{rivals.NAME}:`, which run a scheduler from diffusers and are accepted only by "
        line += "`gms-fast evaluate`"
    if any(solver_names.general(*each) != each[0] for each in solvers):
        line += ". MODEL stands for the name of your model"
    return f"{line}."


def _used(names: Iterable[str], meanings: dict[str, str]) -> list[str]:
    """Return the meanings of the words that occur in any of the names."""
    names = list(names)
    return [meaning for word, meaning in meanings.items() if any(word in name for name in names)]


def counts(own: Records) -> str:
    """Return a sentence on the number of samples behind each cell of one model."""
    sets = len({r["range"] for r in own})
    drawn, real = ({r["n"] for r in own if (r["solver"] == "real") == chosen} for chosen in (False, True))
    line = f"Each cell is the mean over {COUNTS.get(sets, f'{sets} sets')} of {_numbers(drawn)} samples"
    return f"{line}." if real <= drawn else f"{line}; *real against real* uses {_numbers(real)} digits each time."


def _numbers(counts: set[int]) -> str:
    return " or ".join(f"{n:,}" for n in sorted(counts))
