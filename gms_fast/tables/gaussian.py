"""Mean and covariance of data: a Gaussian model with closed forms at every noise level.

With Sigma = U diag(lam) U^T + residual (I - U U^T), x_0 ~ N(mu, Sigma) and x_t = alpha x_0 + sigma eps, every result is
a function of Sigma: a factor for each eigenvector, and one for the directions orthogonal to all of them.
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
_ORTHONORMAL = 2e-3  # tolerance: the error of half precision

Spectrum = Callable[[Tensor], Tensor]  # of the variances of x_0


@dataclass(frozen=True, eq=False)
class Gaussian(Identified):
    """Gaussian model of data: N(mean, U diag(eigenvalues) U^T + residual (I - U U^T)).

    [`gaussian`][gms_fast.statistics.gaussian] measures the mean and the covariance. All values are in the units of the
    network's data and are stored as float64 tensors on the CPU. Lists and arrays are accepted too. The attribute
    `spread` is the square root of the largest variance, that is, the standard deviation along the first eigenvector.

    Args:
        mean: Mean (*sample), or (D,) for samples of any shape with D elements.
        eigenvectors: Matrix U (D, r) with r <= D orthonormal columns. The D elements of a sample are in C order.
        eigenvalues: Variances (r,) along the eigenvectors, >= 0.
        residual: Variance in the directions orthogonal to all columns of U, >= 0 (default 0).
        range: Smallest and largest value in the data, used to detect data in the wrong units. If it is None (default),
            wrong units can only be detected from the mean.
        count: Number of samples that were measured, >= 2, or None (default) if unknown.

    Raises:
        ValueError: If a value is not finite or out of range, if shapes differ, or if the eigenvectors are not
            orthonormal. The message names the argument.

    Examples:
        >>> data = gms_fast.statistics.load_gaussian("digits")
        >>> data.sample_shape, data.rank, data.count
        ((1, 8, 8), 64, 1797)
        >>> x = 10 * torch.randn(2, 1, 8, 8)  # noise of sigma/alpha = 10
        >>> data.denoise(x, alpha=1.0, sigma=10.0).shape
        torch.Size([2, 1, 8, 8])

    References:
        Wang & Vastola 2024, arXiv 2412.09726.
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
            raise ValueError(f"mean, eigenvalues must be (*sample) of D elements and (r,), 1 <= r <= D: got {got}")
        if self.eigenvectors.shape != (D, r):
            raise ValueError(f"eigenvectors must be ({D}, {r}), one column each: got {tuple(self.eigenvectors.shape)}")
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
        """Fraction of the total variance that the eigenvectors account for, in [0, 1]."""
        along = float(self.eigenvalues.sum())
        return along / (along + self.residual * (self.mean.numel() - self.rank))

    def denoise(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return the data estimate E[x_0|x_t] for Gaussian data.

        It is mu + alpha Sigma (alpha^2 Sigma + sigma^2)^-1 (x_t - alpha mu).

        Args:
            x: State x_t (B, *).
            alpha: Scale of the signal.
            sigma: Standard deviation of the noise, > 0.

        Returns:
            Tensor (B, *) with the dtype of x.
        """
        mean = self._mean(x)
        away = self.filter(x - alpha * mean, lambda lam: alpha * lam / (alpha**2 * lam + sigma**2))
        return (mean + away).to(x.dtype)

    def teleport(self, x: Tensor, alpha_t: float, sigma_t: float, alpha_s: float, sigma_s: float) -> Tensor:
        """Move x_t along the probability flow from time t to time s in closed form.

        The result is
        x_s = alpha_s mu + ((alpha_s^2 Sigma + sigma_s^2)/(alpha_t^2 Sigma + sigma_t^2))^(1/2) (x_t - alpha_t mu).

        Args:
            x: State x_t (B, *).
            alpha_t: Scale of the signal at t.
            sigma_t: Standard deviation of the noise at t, > 0.
            alpha_s: Scale of the signal at s.
            sigma_s: Standard deviation of the noise at s.

        Returns:
            Tensor x_s (B, *) with the dtype of x.
        """
        mean = self._mean(x)

        def gain(lam: Tensor) -> Tensor:
            return ((alpha_s**2 * lam + sigma_s**2) / (alpha_t**2 * lam + sigma_t**2)).sqrt()

        return (alpha_s * mean + self.filter(x - alpha_t * mean, gain)).to(x.dtype)

    def draw(self, z: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """Draw from the exact law of x_t: alpha mu + (alpha^2 Sigma + sigma^2)^(1/2) z.

        Args:
            z: Standard normals (B, *).
            alpha: Scale of the signal (default 1).
            sigma: Standard deviation of the noise (default 0).

        Returns:
            Tensor x_t (B, *) with the dtype of z.
        """
        away = self.filter(z, lambda lam: (alpha**2 * lam + sigma**2).sqrt())
        return (alpha * self._mean(z) + away).to(z.dtype)

    def step_noise(self, z: Tensor, step: StepCoefficients) -> Tensor:
        """Return the noise (c + B^2 v)^(1/2) z of a reverse step for Gaussian data.

        The step adds this noise to A x_t + B E[x_0|x_t]. Here v = Sigma sigma_t^2/(alpha_t^2 Sigma + sigma_t^2) is the
        covariance of x_0 given x_t. The variance in each direction is at most `step.var_max`.

        Args:
            z: Standard normals (B, *).
            step: Coefficients of the step.

        Returns:
            Tensor (B, *) with the dtype of z.
        """

        def std(lam: Tensor) -> Tensor:
            v = lam * step.sigma_t**2 / (step.alpha_t**2 * lam + step.sigma_t**2)
            return (step.c + step.B**2 * v).clamp(max=step.var_max).sqrt()

        return self.filter(z, std)

    def filter(self, r: Tensor, spectrum: Spectrum) -> Tensor:
        """Return f(Sigma) r, for a function f that acts on the eigenvalues of Sigma.

        The result is computed by two matrix products, in float64 if r is float64, else in float32.

        Args:
            r: Vectors (B, *).
            spectrum: The function f. It receives and returns a tensor of variances.

        Returns:
            Tensor (B, *) with the dtype of r.
        """
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
        """Check that the statistics fit the shape and the units of the data.

        Args:
            shape: Shape of one sample, or None (default) to skip the check. If the samples or the statistics are flat,
                only the number of elements must agree.
            clip: Data range of the run, or None (default) to skip the check. The range of the statistics must lie
                within the data range, up to a small tolerance, and must not lie in one half of it.
            name: Name of the argument in error messages (default "statistics").

        Raises:
            ValueError: If the shape or the units differ.
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
                f"{name} must be of data in the units of clip, {lo:g} .. {hi:g}: got data from {low:g} to "
                f"{high:g}; measure them on data that is scaled like the network's"
            )

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float32, measurement: str | None = None) -> None:
        """Write the statistics to a safetensors file.

        Args:
            path: File to write.
            dtype: dtype of the stored eigenvectors: float64, float32 (default) or float16.
            measurement: Fingerprint of everything on which the statistics depend. A repeated measurement uses it to
                recognise the file as its result. None (default) stores no fingerprint.

        Raises:
            ValueError: If `dtype` is not one of these.
        """
        if dtype not in (torch.float64, torch.float32, torch.float16):
            raise ValueError(f"dtype must be float64, float32 or float16: got {dtype}")
        kept = {"mean": self.mean, "eigenvectors": self.eigenvectors.to(dtype), "eigenvalues": self.eigenvalues}
        known = {"residual": self.residual, "shape": self.sample_shape, "range": self.range, "count": self.count}
        tensors.write_described(path, kept, FORMAT, known, measurement)

    @classmethod
    def load(cls, path: str | Path) -> "Gaussian":
        """Read statistics from a file that `save` wrote.

        Args:
            path: File to read.

        Returns:
            Gaussian.

        Raises:
            ValueError: If the file is damaged or contains something else. The message names the file.
        """
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
        """Return a tensor on a device and in a dtype, from a cache.

        A compiled graph makes its own copy, because it cannot depend on a dictionary's contents.
        """
        if torch.compiler.is_compiling():
            return getattr(self, name).to(dtype).to(device)
        key = name, device, dtype
        if key not in self._copies:
            with torch.inference_mode(False):  # usable by autograd later
                self._copies[key] = getattr(self, name).to(dtype).to(device)
        return self._copies[key]


def load_gaussian(name_or_path: str | Path) -> Gaussian:
    """Load the mean and covariance of an embedded model's data, or load them from a file.

    Args:
        name_or_path: Name of an embedded model ("mnist" or "digits"), or path of a file that `Gaussian.save` or
            `gms-fast statistics --gaussian` wrote.

    Returns:
        [`Gaussian`][gms_fast.statistics.Gaussian].

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is damaged or contains something else.

    Examples:
        >>> gms_fast.statistics.load_gaussian("digits").sample_shape
        (1, 8, 8)
    """
    return Gaussian.load(named(name_or_path, FILE) or name_or_path)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _check_orthonormal(U: Tensor) -> None:
    """Raise ValueError unless the columns are orthonormal.

    The check is that U^T U v = v for one v of random signs, and that U^T U has 1 on its diagonal. The whole product may
    be too large to compute.
    """
    signs = torch.randint(0, 2, (U.shape[1],), generator=torch.Generator().manual_seed(0), device="cpu")
    v = signs.double() * 2 - 1
    off = max(float((U.T @ (U @ v) - v).norm() / v.norm()), float((U.square().sum(0) - 1).abs().max()))
    if off > _ORTHONORMAL:
        raise ValueError(f"eigenvectors must be orthonormal columns: U^T U is off the identity by {off:.2g}")
