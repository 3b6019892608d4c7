"""Subjects of an evaluation: a model, the real data its samples are held against, and features to see them through."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gms_fast import data, editing, io, schedules
from gms_fast.models import GaussianMixture1D, PointCloud
from gms_fast.quality.classifier import SHAPES

REFERENCE = 4000  # samples at most: distances of all pairs are taken, anew in each cell
BANDWIDTH = 0.1  # of the noise that makes a density of the data points
ROUNDED = "@bfloat16"
_REAL = 1 << 31  # seeds of real samples start here; torch takes 32 bits of a seed
EIGHT = [(np.cos(a), np.sin(a)) for a in np.arange(8) * np.pi / 4]
LEARNED = {"mnist": "mnist5k", "digits": "digits"}  # embedded model: the data it was trained on
DATA_OF_EXACT = {"exact-digits": "digits", "exact-mnist5k": "mnist5k"}


@dataclass(frozen=True)
class Subject:
    """A model with its real data.

    model      for `gms_fast.sample`
    reference  (R, *shape) real samples
    control    (N, *shape) other real samples; None: they are drawn from the model as need be
    features   name of the classifier that sees the samples (`classifier.SHAPES`), or None
    clip, dtype  for `gms_fast.sample`
    classes    of a network that asks for them; samples then take turns
    """

    model: Any
    reference: Tensor
    control: Tensor | None
    features: str | None
    clip: tuple[float, float] | None
    dtype: torch.dtype
    classes: int = 0

    def condition(self, n: int, index: int) -> dict[str, Tensor] | None:
        """Classes of n samples from an index on; None for a network without."""
        if not self.classes:
            return None
        return dict.fromkeys(self.model.needed, torch.arange(index, index + n) % self.classes)

    def real(self, n: int, index: int) -> Tensor:
        """At most n real samples beside the reference; another `index`, other samples."""
        if self.control is None:
            return self.model.draw(n, torch.Generator().manual_seed(_REAL + index)).to(self.dtype)
        generator = torch.Generator().manual_seed(index)
        return self.control[torch.randperm(len(self.control), generator=generator)[:n]]

    def pictures(self, n: int, index: int) -> Tensor:
        """n of the control's pictures from an index on, over and over. Raises ValueError where there are none."""
        if self.control is None or self.control.ndim != 4:
            raise ValueError("strength and control guide are for models with real pictures: there are none to paint")
        return self.control[torch.arange(index, index + n) % len(self.control)]

    def strokes(self, n: int, index: int) -> Tensor:
        """Those pictures, painted: guides for `editing.stroke`."""
        return editing.paint(self.pictures(n, index))

    def gaussian(self, n: int, index: int) -> Tensor:
        """n draws of the Gaussian with the mean and covariance of the reference: what linear statistics cannot tell."""
        flat = self.reference.flatten(1).double().numpy()
        covariance = np.atleast_2d(np.cov(flat, rowvar=False))
        draw = np.random.default_rng(index).multivariate_normal(flat.mean(0), covariance, n, method="eigh")
        return torch.from_numpy(draw).view(n, *self.reference.shape[1:]).to(self.dtype)


def names() -> list[str]:
    """The subjects that a name alone describes: exact noise moments, then learned ones."""
    return ["mixture-1d", "eight", *DATA_OF_EXACT, *LEARNED]


@lru_cache(maxsize=2)
def build(model: str, source: str | None = None, schedule: str | None = None, features: str | None = None) -> Subject:
    """The subject of a name, or of whatever `gms_fast.load` takes with the real data of `gms_fast.data.load`.

    model     "...@bfloat16": a learned model whose outputs are rounded to bfloat16
    schedule  of a model with exact moments; a learned one has its own
    features  a name of `classifier.SHAPES`, for real data of that shape. None: those of a data set that has a name,
              and none for pictures of a file or folder
    Real data is split in two: a reference, of `REFERENCE` samples at most, and a control. Raises ValueError where data
    or shapes are missing or differ.
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
        raise ValueError(f"data must be given for model {model}: real images to hold its samples against")
    real = data.load(source)
    if tuple(real.shape[1:]) != tuple(network.sample_shape):
        raise ValueError(f"data must be {tuple(network.sample_shape)} for model {model}: got {tuple(real.shape[1:])}")
    real = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))]
    half = len(real) // 2
    seen = _features(features, source, tuple(real.shape[1:]))
    asked = tuple(getattr(network, "needed", ()))
    if len(asked) > 1:
        raise ValueError(f"model must depend on classes at most: {model} asks for {', '.join(asked)}")
    classes = int(data.load_labels(source).max()) + 1 if asked else 0
    return Subject(network, real[:half][:REFERENCE], real[half:], seen, (-1.0, 1.0), torch.float32, classes)


def _features(name: str | None, source: str, shape: tuple[int, ...]) -> str | None:
    """The name of the classifier for pictures of a shape; that of a data set sees it without being named."""
    if name is None:
        return source if source in data.names() else None
    if name not in SHAPES:
        raise ValueError(f"features must be one of {', '.join(SHAPES)}: got {name!r}")
    if SHAPES[name] != shape:
        raise ValueError(f"features must be for pictures {shape}: {name} sees {SHAPES[name]}")
    return name


def _mixture(schedule: Any) -> GaussianMixture1D:
    """0.4 N(-0.6, 0.12^2) + 0.6 N(0.5, 0.08^2)."""
    return GaussianMixture1D((0.4, 0.6), (-0.6, 0.5), (0.12, 0.08), schedule=schedule)


def split(model: str) -> tuple[str, bool]:
    """The name or path of a model, and whether its outputs are to be rounded to bfloat16."""
    return model.removesuffix(ROUNDED), model.endswith(ROUNDED)


def _rounded(network: Any, given: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.bfloat16().to(output.dtype)
    return type(output)(*(e.bfloat16().to(e.dtype) for e in output))


def _drawn(exact: Any, n: int) -> Tensor:
    return exact.draw(n, torch.Generator().manual_seed(_REAL - 1))
