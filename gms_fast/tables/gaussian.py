"""Mean and covariance of data: what a Gaussian knows of it, in closed form at every noise level.

With Sigma = U diag(lam) U^T + residual (I - U U^T), x_0 ~ N(mu, Sigma) and x_t = alpha x_0 + sigma eps, every question
is answered by a function of Sigma, a factor for each eigenvector and one for what is orthogonal to all of them.
Source: Wang & Vastola 2024 (arXiv 2412.09726).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gms_fast.constants import Identified
from gms_fast.steps import StepCoefficients
from gms_fast.storage import tensors
from gms_fast.storage.embedded import named
from gms_fast.storage.reading import metadata, refusing
from gms_fast.storage.schema import Integer, Listed, Optional, Real
from gms_fast.tables.wide import home, on_cpu
from gms_fast.types import as_range

FORMAT, FILE = "gms_fast gaussian statistics 1", "gaussian.safetensors"
_TENSORS = ("mean", "eigenvectors", "eigenvalues")
_METADATA = {
    "residual": Real(0),
    "shape": Listed(Integer(1), 64),
    "range": Optional(Listed(Real(infinite=True), 2, 2)),
    "count": Optional(Integer(2)),
}
_ORTHONORMAL = 2e-3  # what half precision leaves of it

Spectrum = Callable[[Tensor], Tensor]  # of the variances of x_0


@dataclass(frozen=True, eq=False)
class Gaussian(Identified):
    """N(mean, U diag(eigenvalues) U^T + residual (I - U U^T)), in the units of the network.

    mean          (*sample), or (D,) for samples of any shape with D elements
    eigenvectors  U, (D, r), orthonormal columns, r <= D, elements in C order
    eigenvalues   (r,), not negative
    residual      variance of the directions that U leaves out
    range         smallest and largest value of the data, its unit; None where unknown: then only the mean can show that
                  the unit is another
    count         how many samples it was made of; None where unknown
    spread        sqrt of the largest variance: the standard deviation along the first eigenvector
    Kept as float64 tensors on the CPU; lists and arrays will do. Raises ValueError naming the argument.
    """

    mean: Tensor
    eigenvectors: Tensor
    eigenvalues: Tensor
    residual: float = 0.0
    range: tuple[float, float] | None = field(default=None, kw_only=True)
    count: int | None = field(default=None, kw_only=True)
    spread: float = field(init=False, repr=False)
    _limits: tuple[float, float] = field(init=False, repr=False)
    _copies: dict[tuple[str, torch.device, torch.dtype], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in _TENSORS:
            value = on_cpu(getattr(self, name))
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name} must be finite: it holds NaN or infinity")
            object.__setattr__(self, name, value)
        D, r = self.mean.numel(), self.eigenvalues.numel()
        if self.mean.ndim == 0 or not 1 <= r <= D or self.eigenvalues.ndim != 1:
            got = f"{tuple(self.mean.shape)} and {tuple(self.eigenvalues.shape)}"
            raise ValueError(f"mean, eigenvalues must be (*sample) and (r,), 1 <= r <= D elements: got {got}")
        if self.eigenvectors.shape != (D, r):
            raise ValueError(f"eigenvectors must be ({D}, {r}), a column each: got {tuple(self.eigenvectors.shape)}")
        object.__setattr__(self, "residual", float(self.residual))
        if bool((self.eigenvalues < 0).any()) or not 0 <= self.residual < math.inf:
            worst = min(float(self.eigenvalues.min()), self.residual)
            raise ValueError(f"eigenvalues and residual must be finite and not negative: got {worst:g}")
        if self.range is not None:
            object.__setattr__(self, "range", as_range(self.range, "range"))
        if self.count is not None and (type(self.count) is not int or self.count < 2):
            raise ValueError(f"count must be an integer of at least 2, or None: got {self.count!r}")
        _check_orthonormal(self.eigenvectors)
        limits = self.range or (float(self.mean.min()), float(self.mean.max()))
        object.__setattr__(self, "_limits", limits)
        object.__setattr__(self, "spread", math.sqrt(max(float(self.eigenvalues.max()), self.residual)))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.mean.shape)

    @property
    def rank(self) -> int:
        """Number of eigenvectors."""
        return len(self.eigenvalues)

    @property
    def variance_kept(self) -> float:
        """Share of the trace of Sigma that lies along the eigenvectors."""
        along = float(self.eigenvalues.sum())
        return along / (along + self.residual * (self.mean.numel() - self.rank))

    def denoise(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x_0|x_t] = mu + alpha Sigma (alpha^2 Sigma + sigma^2)^-1 (x_t - alpha mu) for x (B, *), sigma > 0."""
        mean = self._mean(x)
        away = self.filter(x - alpha * mean, lambda lam: alpha * lam / (alpha**2 * lam + sigma**2))
        return (mean + away).to(x.dtype)

    def teleport(self, x: Tensor, alpha_t: float, sigma_t: float, alpha_s: float, sigma_s: float) -> Tensor:
        """Move x_t (B, *) along the probability flow from noise level t to s; sigma_t > 0.

        x_s = alpha_s mu + ((alpha_s^2 Sigma + sigma_s^2)/(alpha_t^2 Sigma + sigma_t^2))^(1/2) (x_t - alpha_t mu)
        """
        mean = self._mean(x)

        def gain(lam: Tensor) -> Tensor:
            return ((alpha_s**2 * lam + sigma_s**2) / (alpha_t**2 * lam + sigma_t**2)).sqrt()

        return (alpha_s * mean + self.filter(x - alpha_t * mean, gain)).to(x.dtype)

    def draw(self, z: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """x_t = alpha mu + (alpha^2 Sigma + sigma^2)^(1/2) z of normals z (B, *): its exact law at a noise level."""
        away = self.filter(z, lambda lam: (alpha**2 * lam + sigma**2).sqrt())
        return (alpha * self._mean(z) + away).to(z.dtype)

    def step_noise(self, z: Tensor, step: StepCoefficients) -> Tensor:
        """(c + B^2 v)^(1/2) z, at most var_max: what a reverse step adds to A x_t + B E[x_0|x_t] where x_0 is Gaussian.

        v = Sigma sigma_t^2/(alpha_t^2 Sigma + sigma_t^2) is the covariance of x_0 given x_t; z normals (B, *).
        """

        def std(lam: Tensor) -> Tensor:
            v = lam * step.sigma_t**2 / (step.alpha_t**2 * lam + step.sigma_t**2)
            return (step.c + step.B**2 * v).clamp(max=step.var_max).sqrt()

        return self.filter(z, std)

    def filter(self, r: Tensor, spectrum: Spectrum) -> Tensor:
        """f(Sigma) r for r (B, *): two matrix products, in float64 for float64 and in float32 otherwise; r's dtype."""
        wide = _wide(r)
        U = self._on("eigenvectors", r.device, wide)
        along, flat = spectrum(self._on("eigenvalues", home(r.device), torch.float64)), r.flatten(1).to(wide)
        if self.rank == len(U):
            change = ((flat @ U) * along.to(wide).to(r.device)) @ U.T
        else:
            rest = spectrum(torch.tensor(self.residual, dtype=torch.float64, device="cpu"))
            change = ((flat @ U) * (along - rest).to(wide).to(r.device)) @ U.T
            change.add_(rest.to(wide) * flat)
        return change.view(r.shape).to(r.dtype)

    def check(
        self,
        *,
        shape: Sequence[int] | None = None,
        clip: tuple[float, float] | None = None,
        name: str = "statistics",
    ) -> None:
        """Raise ValueError saying what of these, where given, the statistics are not of: another shape, another unit.

        shape  of one sample; flat statistics are of any shape, and a flat sample has any statistics of its size
        clip   range of the data here: that of the statistics must not leave it, nor keep to one half of it
        name   of the argument that they were
        """
        if shape is not None and not self._fits(tuple(shape)):
            raise ValueError(f"{name} must be of samples of shape {tuple(shape)}: got {self.sample_shape}")
        if clip is None:
            return
        (lo, hi), (low, high) = clip, self._limits
        slack, middle = 0.05 * (hi - lo), (lo + hi) / 2
        half = self.range is not None and (low >= middle or high <= middle)
        if low < lo - slack or high > hi + slack or half:
            raise ValueError(
                f"{name} must be of data in the units of clip, {lo:g} .. {hi:g}: theirs goes from {low:g} to "
                f"{high:g}; make them of data that is scaled as the network's"
            )

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float32, measurement: str | None = None) -> None:
        """Write one safetensors file.

        dtype        of the eigenvectors: float64, float32 or float16
        measurement  fingerprint of all that the statistics depend on, by which a finished measurement knows its file
        """
        if dtype not in (torch.float64, torch.float32, torch.float16):
            raise ValueError(f"dtype must be float64, float32 or float16: got {dtype}")
        kept = {"mean": self.mean, "eigenvectors": self.eigenvectors.to(dtype), "eigenvalues": self.eigenvalues}
        known = {"residual": self.residual, "shape": self.sample_shape, "range": self.range, "count": self.count}
        tensors.write_described(path, kept, FORMAT, known, measurement)

    @classmethod
    def load(cls, path: str | Path) -> "Gaussian":
        """The statistics that `save` wrote. Raises ValueError naming the file and what is wrong with it."""
        found, stored = tensors.read(Path(path), FORMAT, _TENSORS, _METADATA)
        with refusing(f"statistics {path} make no sense", path):
            known = metadata(stored, _METADATA)
            limits = known["range"] and tuple(known["range"])
            mean, vectors, values = (found[name] for name in _TENSORS)
            statistics = cls(mean, vectors, values, known["residual"], range=limits, count=known["count"])
        if known["shape"] != list(statistics.sample_shape):
            raise ValueError(
                f"statistics {path}: shape is {known['shape']} by its metadata, but {list(statistics.sample_shape)} "
                "in its tensors"
            )
        return statistics

    def _fits(self, shape: tuple[int, ...]) -> bool:
        flat = 1 in (len(shape), len(self.sample_shape)) and math.prod(shape) == self.mean.numel()
        return flat or shape == self.sample_shape

    def _mean(self, x: Tensor) -> Tensor:
        return self._on("mean", x.device, _wide(x)).view(x.shape[1:])

    def _on(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A copy that later calls find again; a compiled graph makes its own, and asks for no dictionary's contents."""
        if torch.compiler.is_compiling():
            return getattr(self, name).to(dtype).to(device)
        key = name, device, dtype
        if key not in self._copies:
            with torch.inference_mode(False):  # of use to autograd later
                self._copies[key] = getattr(self, name).to(dtype).to(device)
        return self._copies[key]


def load_gaussian(name_or_path: str | Path) -> Gaussian:
    """Statistics of an embedded model's data, by its name ("mnist", "digits"), or those of a file."""
    return Gaussian.load(named(name_or_path, FILE) or name_or_path)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _check_orthonormal(U: Tensor) -> None:
    """Raise ValueError unless U^T U v = v for v of random signs, and 1 on its diagonal: all of it may be too much."""
    signs = torch.randint(0, 2, (U.shape[1],), generator=torch.Generator().manual_seed(0), device="cpu")
    v = signs.double() * 2 - 1
    off = max(float((U.T @ (U @ v) - v).norm() / v.norm()), float((U.square().sum(0) - 1).abs().max()))
    if off > _ORTHONORMAL:
        raise ValueError(f"eigenvectors must be orthonormal columns: U^T U is off the identity by {off:.2g}")
