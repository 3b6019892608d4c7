"""Second moment of the noise from the Jacobian of a network, without training."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gms_fast.assumptions import attribute, describe
from gms_fast.derivatives import Derivative, double_backward, either, forward_mode
from gms_fast.estimate import estimate
from gms_fast.models.level_table import LevelTable
from gms_fast.network import ARITHMETIC, Network, dtypes_of
from gms_fast.prediction import LevelTensors, Meaning
from gms_fast.schedules import Schedule
from gms_fast.types import NoiseMoments

_PRECISE = ARITHMETIC[:2]
_WORD = 0xFFFFFFFF
_FACTOR = 0x45D9F3B  # products with words stay below 2^63
_PER_SEED, _PER_HIGH_SEED, _PER_PROBE = 0x9E3779B9, 0x85EBCA6B, 0x7F4A7C15


class JacobianVariance(torch.nn.Module):
    """Model that adds the variance of the noise given x_t to a network that predicts its mean.

    With this model you can use `SNDDPM()` and `GMS(fit="gaussian")` without training moment heads. By Tweedie's
    formula, Var[x_0|x_t] = (sigma^2/alpha) dm/dx with m = E[x_0|x_t] = (x - sigma e1)/alpha. For element i,

        e2 = E[(eps - e1)^2|x_t] = (alpha/sigma)^2 Var[x_0|x_t] = 1 - sigma d e1_i/dx_i.

    The derivative is estimated with P random probes. Each probe v is a vector of random signs and gives the unbiased
    estimate 1 - sigma v_i (J v)_i, where J = d e1/dx. The mean of P estimates has the variance
    (sigma^2/P) sum_{j != i} J_ij^2. For Var[x_0,i|x_t], the variance of the estimate is the sum of
    Cov(x_0,i, x_0,j|x_t)^2 over the other elements j, divided by P. One probe is exact if the elements are independent.
    Single estimates may be negative. They are not clipped here, because that would bias averages. Solvers treat
    negative values as zero variance.

    A call with x (B, *) and network times (B,) returns NoiseMoments(e1, e2, None), where e2 is a central moment in
    float32 or wider.

    Args:
        network: Callable `(x, t, **condition)` that returns a tensor or NoiseMoments, as in
            [`sample`][gms_fast.sample]. If it returns moments, only e1 is used.
        probes: Number of probes P >= 1.
        schedule: Noise schedule of the network, or its name. Defaults to the network's attribute.
        prediction: What a single output tensor represents: "noise", "x0", ..., as in [`sample`][gms_fast.sample].
            Defaults to the network's attribute, or to "noise" if it has none.
        distance: Step size d in (0, 1] of the finite difference (e1(x + d sigma v) - e1(x))/(d sigma), which then
            replaces J v. The network must run in float32 or float64. The mean error is of order d^2. At d = 0.01, an
            error of 1e-4 remains in float32. If None, the exact derivative is computed.
        seed: Seed >= 0 of the random signs. They differ between elements, network times and probes, but not between
            samples, so a batch may be split.

    Raises:
        ValueError: If an argument is out of range, or if `distance` is given for a 16-bit network.
        TypeError: If `network` is not callable.

    Examples:
        >>> model = gms_fast.models.JacobianVariance(gms_fast.load("digits"))
        >>> gms_fast.sample(model, 3, solver=gms_fast.solvers.SNDDPM(), n=2).shape
        torch.Size([2, 1, 8, 8])

    Note:
        With `distance`, a call costs as much as 1 + P network calls. Without it, a call with one probe costs as much as
        4 to 6 network calls on a CPU, and each further probe adds 2 to 4 (bench/results/jacobian.md). Derivatives are
        computed in forward mode or, for layers that do not support it, by two backward passes at about the same cost.
        Attention then runs without fast kernels. `torch.compile` supports only layers that it can trace in forward
        mode, which excludes group norms (torch 2.13).

        docs/quality.md shows the effect on samples. Solvers that use no variance call `first_moment`, which is one
        plain network call, so they have no extra cost.

    References:
        Hutchinson 1990; Bekas et al. 2007.
    """

    def __init__(
        self,
        network: Callable[..., Tensor | NoiseMoments],
        probes: int = 1,
        *,
        schedule: Schedule | str | None = None,
        prediction: str | None = None,
        distance: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not callable(network):
            raise TypeError(f"network must be callable as network(x, t): got {type(network).__name__}")
        for name, value, least in (("probes", probes, 1), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}: got {value!r}")
        if distance is not None and not 0 < distance <= 1:
            raise ValueError(f"distance must lie in (0, 1], or be None: got {distance!r}")
        said = describe(network, schedule, prediction)
        self.network, self.probes, self.distance, self.seed = network, probes, distance, seed
        self.schedule, self.form = said.built(), said.prediction
        self.sample_shape = attribute(network, "sample_shape")
        self.prediction, self.moments = "noise", "central"
        if not said.clip_assumed:
            self.clip = said.clip
        self._levels = LevelTable(self.schedule)
        self._derivative: Derivative = forward_mode  # until it fails

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> NoiseMoments:
        noise, sigma = self._noise(x, t, condition)
        signs = [probe(x, t, self.seed, k) for k in range(self.probes)]
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.distance is None:
            e1, slopes = self._derived(noise, x, signs)
            scaled = [sigma * slope.to(wide) for slope in slopes]
        else:
            self._check_precise(x)
            reach = self.distance * sigma.to(wide)
            e1 = noise(x)
            scaled = [(noise(x + reach * v) - e1) / self.distance for v in signs]
        along = torch.stack([v * slope for v, slope in zip(signs, scaled, strict=True)])
        return NoiseMoments(e1, 1 - along.mean(0))

    def first_moment(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """Return only E[eps|x_t], in one plain network call.

        Args:
            x: States (B, *).
            t: Network times (B,).
            **condition: Conditions of the network.

        Returns:
            Tensor shaped like x.
        """
        return self._noise(x, t, condition)[0](x)

    def _noise(self, x: Tensor, t: Tensor, condition: dict[str, Any]) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return e1 as a function of the state at times t, and sigma."""
        alpha, sigma, *_ = self._levels(t, x)
        network = Network(self.network, condition=condition, guarded=False)
        meaning = Meaning(self.form, LevelTensors(alpha, sigma))
        return lambda x: estimate(network(x, t, first=True), x, meaning).moments.e1, sigma

    def _derived(
        self, noise: Callable[[Tensor], Tensor], x: Tensor, signs: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return e1, and J v for each of the probes v."""
        directions = [(v,) for v in signs]
        if torch.compiler.is_compiling() or self._derivative is double_backward:
            return self._derivative(noise, (x,), directions)
        found, self._derivative = either(noise, (x,), directions)
        return found

    def _check_precise(self, x: Tensor) -> None:
        dtype = dtypes_of(self.network, x)[0]
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else dtype
        if dtype not in _PRECISE:
            raise ValueError(
                f"distance must be None for a network in {dtype}, because its rounding errors exceed the difference"
            )


def probe(x: Tensor, t: Tensor, seed: int, k: int) -> Tensor:
    """Return the random signs of probe k at times t (B,), shaped like x (B, *) and in its dtype.

    They come from a hash that is computed on the device of x.
    """
    word = (seed * _PER_SEED + (seed >> 32) * _PER_HIGH_SEED + k * _PER_PROBE) & _WORD
    key = _mixed((t.float().view(torch.int32).long() & _WORD) ^ word)
    element = torch.arange(math.prod(x.shape[1:]), device=x.device)
    bits = (_mixed(element ^ key[:, None]) >> 7) & 1
    return (1 - 2 * bits).to(x.dtype).view(x.shape)


def _mixed(word: Tensor) -> Tensor:
    """Hash the 32-bit words in an int64 tensor; the hash is a permutation."""
    for _ in range(2):
        word = ((word ^ (word >> 16)) * _FACTOR) & _WORD
    return word ^ (word >> 16)
