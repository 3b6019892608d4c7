"""Evaluation subjects: a model, real data to compare with, and a feature classifier."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gms_fast import data, editing, io, schedules
from gms_fast.models import GaussianMixture1D, PointCloud
from gms_fast.quality.classifier import SHAPES

REFERENCE = 4000  # most samples: each cell computes the distances of all pairs
BANDWIDTH = 0.1  # standard deviation of the noise that makes a density of the data points
ROUNDED = "@bfloat16"
_REAL = 1 << 31  # first seed for real samples; torch uses 32 bits of a seed
EIGHT = [(np.cos(a), np.sin(a)) for a in np.arange(8) * np.pi / 4]
LEARNED = {"mnist": "mnist5k", "digits": "digits"}  # embedded model: the data it was trained on
DATA_OF_EXACT = {"exact-digits": "digits", "exact-mnist5k": "mnist5k"}


@dataclass(frozen=True)
class Subject:
    """A model with its real data.

    Args:
        model: Model for `gms_fast.sample`.
        reference: Real samples (R, *shape).
        control: Other real samples (N, *shape); None: they are drawn from the model when needed.
        features: Name of the classifier for the samples (`classifier.SHAPES`), or None.
        clip: As in `gms_fast.sample`.
        dtype: As in `gms_fast.sample`.
        classes: Number of classes of a class-conditional network, else 0. Samples take the classes in turn.
    """

    model: Any
    reference: Tensor
    control: Tensor | None
    features: str | None
    clip: tuple[float, float] | None
    dtype: torch.dtype
    classes: int = 0

    def condition(self, n: int, index: int) -> dict[str, Tensor] | None:
        """Return classes for n samples from an index on; None for an unconditional network."""
        if not self.classes:
            return None
        return dict.fromkeys(self.model.needed, torch.arange(index, index + n) % self.classes)

    def real(self, n: int, index: int) -> Tensor:
        """Return at most n real samples outside the reference; another `index` gives other samples."""
        if self.control is None:
            return self.model.draw(n, torch.Generator().manual_seed(_REAL + index)).to(self.dtype)
        generator = torch.Generator().manual_seed(index)
        return self.control[torch.randperm(len(self.control), generator=generator)[:n]]

    def pictures(self, n: int, index: int) -> Tensor:
        """Return n images of the control from an index on, cyclically.

        Raises ValueError if there are none.
        """
        if self.control is None or self.control.ndim != 4:
            raise ValueError("strength and control guide need real images to paint: this model's data has none")
        return self.control[torch.arange(index, index + n) % len(self.control)]

    def strokes(self, n: int, index: int) -> Tensor:
        """Return the same images painted with strokes, as guides for `editing.stroke`."""
        return editing.paint(self.pictures(n, index))

    def gaussian(self, n: int, index: int) -> Tensor:
        """Draw n points of the Gaussian with the reference's mean and covariance.

        It is the control that linear statistics cannot tell from real data.
        """
        flat = self.reference.flatten(1).double().numpy()
        covariance = np.atleast_2d(np.cov(flat, rowvar=False))
        draw = np.random.default_rng(index).multivariate_normal(flat.mean(0), covariance, n, method="eigh")
        return torch.from_numpy(draw).view(n, *self.reference.shape[1:]).to(self.dtype)


def names() -> list[str]:
    """Return the names of built-in subjects: exact noise moments first, then learned ones."""
    return ["mixture-1d", "eight", *DATA_OF_EXACT, *LEARNED]


@lru_cache(maxsize=2)
def build(model: str, source: str | None = None, schedule: str | None = None, features: str | None = None) -> Subject:
    """Build the subject of a name, or of a model that `gms_fast.load` takes with real data.

    The real data of a learned model are split in two: a reference of at most `REFERENCE` samples, and a control.

    Args:
        model: Name or path. The suffix "@bfloat16" rounds a learned model's outputs to bfloat16.
        source: Real data for `gms_fast.data.load`.
        schedule: Noise schedule of a model with exact moments; a learned model has its own.
        features: A name of `classifier.SHAPES`, for real data of that shape. None: the classifier of a named data set,
            and
            none for images of a file or folder.

    Raises ValueError if data or shapes are missing or differ.
    """
    noise = None if schedule is None else schedules.build(schedule)
    for said, given in (("data is", source), ("features are", features)):
        if given is not None and model in set(names()) - LEARNED.keys():
            raise ValueError(f"{said} for learned models; {model} has its own: got {given!r}")
    if model in ("mixture-1d", "eight"):
        exact = _mixture(noise) if model == "mixture-1d" else PointCloud(torch.tensor(EIGHT), 0.05, schedule=noise)
        return Subject(
            exact, _drawn(exact, 100_000 if model == "mixture-1d" else REFERENCE), None, None, None, torch.float64
        )
    if model in DATA_OF_EXACT:
        exact = PointCloud(data.load(DATA_OF_EXACT[model]), BANDWIDTH, schedule=noise)
        return Subject(exact, _drawn(exact, REFERENCE), None, DATA_OF_EXACT[model], None, torch.float64)
    if schedule is not None:
        raise ValueError(f"schedule is for exact models; {model} was trained with its own: got {schedule!r}")
    model, precision = split(model)
    network = io.load(model).requires_grad_(False)
    if precision:
        network.register_forward_hook(_rounded)
    source = source or LEARNED.get(model)
    if source is None:
        raise ValueError(f"data must be given for model {model}: real images to compare its samples with")
    real = data.load(source)
    if tuple(real.shape[1:]) != tuple(network.sample_shape):
        raise ValueError(f"data must be {tuple(network.sample_shape)} for model {model}: got {tuple(real.shape[1:])}")
    real = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))]
    half = len(real) // 2
    seen = _features(features, source, tuple(real.shape[1:]))
    asked = tuple(getattr(network, "needed", ()))
    if len(asked) > 1:
        raise ValueError(f"model must need no condition other than classes: {model} needs {', '.join(asked)}")
    classes = int(data.load_labels(source).max()) + 1 if asked else 0
    return Subject(network, real[:half][:REFERENCE], real[half:], seen, (-1.0, 1.0), torch.float32, classes)


def _features(name: str | None, source: str, shape: tuple[int, ...]) -> str | None:
    """Check a classifier's name for images of a shape; None becomes that of a named data set."""
    if name is None:
        return source if source in data.names() else None
    if name not in SHAPES:
        raise ValueError(f"features must be one of {', '.join(SHAPES)}: got {name!r}")
    if SHAPES[name] != shape:
        raise ValueError(f"features must be for images {shape}: {name} sees {SHAPES[name]}")
    return name


def _mixture(schedule: Any) -> GaussianMixture1D:
    """0.4 N(-0.6, 0.12^2) + 0.6 N(0.5, 0.08^2)."""
    return GaussianMixture1D((0.4, 0.6), (-0.6, 0.5), (0.12, 0.08), schedule=schedule)


def split(model: str) -> tuple[str, bool]:
    """Return a model's name or path, and True if its outputs are to be rounded to bfloat16."""
    return model.removesuffix(ROUNDED), model.endswith(ROUNDED)


def _rounded(network: Any, given: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.bfloat16().to(output.dtype)
    return type(output)(*(e.bfloat16().to(e.dtype) for e in output))


def _drawn(exact: Any, n: int) -> Tensor:
    return exact.draw(n, torch.Generator().manual_seed(_REAL - 1))
