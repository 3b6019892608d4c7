"""The second moment of the noise from a network's own derivative, without training."""

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
    """A network with the variance of the noise given x_t, for SNDDPM() and GMS(fit="gaussian"); it was trained for e1.

    By Tweedie's formula Var[x_0|x_t] = (sigma^2/alpha) dm/dx, m = E[x_0|x_t] = (x - sigma e1)/alpha; in every element

        e2 = E[(eps - e1)^2|x_t] = (alpha/sigma)^2 Var[x_0|x_t] = 1 - sigma d e1_i/dx_i

    of which each of P probes, signs v, gives an estimate without bias: 1 - sigma v_i (J v)_i with J = d e1/dx. The
    variance of their mean is (sigma^2/P) sum_{j != i} J_ij^2; of Var[x_0,i|x_t] that is the sum over other elements j
    of Cov(x_0,i, x_0,j|x_t)^2, over P. Where elements are independent one probe is exact. Single estimates may be
    negative, which solvers count as no variance; a bound here would leave them biased where they are averaged.

    network     callable (x, t, **condition) -> Tensor or NoiseMoments, as `sample` takes it; of moments e1 counts
    probes      P >= 1
    schedule, prediction  of the network, unless it has attributes of these names
    distance    d in (0, 1]: (e1(x + d sigma v) - e1(x))/(d sigma) in place of J v, off by d^2 on average, for networks
                in float32 or float64; 0.01 leaves 10^-4 of float32 there. None: the derivative itself
    seed        of the signs >= 0, which differ by element, network time and probe and are the same for all samples, so
                that a batch may be split
    Called with x (B, *) and network times (B,) it returns NoiseMoments(e1, e2, None), central, e2 in float32 at least.

    With `distance` a call costs 1 + P of the network. The derivative costs more: with one probe 4 to 6 plain calls on
    a CPU and with each other 2 to 4 more, in forward mode as in the two backward passes that are taken where a layer
    has none (bench/results/jacobian.md). Attention is computed without fast kernels then, and `torch.compile` takes
    only layers that it can trace so, which group norms are not (torch 2.13). What it brings: docs/quality.md.
    `first_moment` is one plain call: solvers that read no variance pay nothing.
    Raises ValueError or TypeError naming the argument. Source of the estimator: Hutchinson 1990; Bekas et al. 2007.
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
        """E[eps|x_t] alone, in one plain call of the network."""
        return self._noise(x, t, condition)[0](x)

    def _noise(self, x: Tensor, t: Tensor, condition: dict[str, Any]) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """(e1 as a function of the state at times t, sigma)."""
        alpha, sigma, *_ = self._levels(t, x)
        network = Network(self.network, condition=condition, guarded=False)
        meaning = Meaning(self.form, LevelTensors(alpha, sigma))
        return lambda x: estimate(network(x, t, first=True), x, meaning).moments.e1, sigma

    def _derived(
        self, noise: Callable[[Tensor], Tensor], x: Tensor, signs: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """e1 and J v of each of the probes v."""
        directions = [(v,) for v in signs]
        if torch.compiler.is_compiling() or self._derivative is double_backward:
            return self._derivative(noise, (x,), directions)
        found, self._derivative = either(noise, (x,), directions)
        return found

    def _check_precise(self, x: Tensor) -> None:
        dtype = dtypes_of(self.network, x)[0]
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else dtype
        if dtype not in _PRECISE:
            raise ValueError(f"distance must be None for a network in {dtype}, which rounds such a difference away")


def probe(x: Tensor, t: Tensor, seed: int, k: int) -> Tensor:
    """Signs of probe k at times t (B,), shaped like x (B, *) and in its dtype: a hash, computed where x is."""
    word = (seed * _PER_SEED + (seed >> 32) * _PER_HIGH_SEED + k * _PER_PROBE) & _WORD
    key = _mixed((t.float().view(torch.int32).long() & _WORD) ^ word)
    element = torch.arange(math.prod(x.shape[1:]), device=x.device)
    bits = (_mixed(element ^ key[:, None]) >> 7) & 1
    return (1 - 2 * bits).to(x.dtype).view(x.shape)


def _mixed(word: Tensor) -> Tensor:
    """A permutation of the 32-bit words in an int64 tensor that leaves no order."""
    for _ in range(2):
        word = ((word ^ (word >> 16)) * _FACTOR) & _WORD
    return word ^ (word >> 16)
