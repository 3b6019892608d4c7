"""Networks of other libraries as models of this one."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from gms_fast import prediction as predictions
from gms_fast import schedules
from gms_fast.assumptions import UNSAID, layers, unwrapped
from gms_fast.models import hosts
from gms_fast.models.hosts import Host
from gms_fast.models.learned_variance import LearnedVariance
from gms_fast.schedules import Schedule
from gms_fast.types import NoiseMoments

Told = TypeVar("Told")
_LEARNED = "learned-range"
_MOMENTS = ("raw", "central", _LEARNED)


def wrap(
    network: Any,
    kind: str | None = None,
    *,
    schedule: Schedule | str | None = None,
    prediction: str | None = None,
    moments: str | None = None,
    **conditions: object,
) -> "Wrapped":
    """A model, called as model(x, t, **condition), of a network of another library.

    network     "diffusers": a network, a pipeline, or (network, scheduler); "edm": a preconditioned network;
                "guided-diffusion": a U-Net of it, of improved-diffusion or their like; "dit": a DiT; either of them
                also (network, diffusion), as their scripts make both;
                "denoising-diffusion": a network or GaussianDiffusion of denoising-diffusion-pytorch; "azula": denoisers
    kind        one of these names; None: found out from the network, which may be in torch's wrappers
    schedule, prediction  as for `sample`; needed where the network does not tell them
    moments     what outputs hold beyond a prediction: "raw" or "central" where the network returns (e1, e2, ..) of the
                noise; "learned-range" where the second half of 2C channels is a learned variance in improved DDPM's
                sense. None: nothing, or for networks that are known for it a learned variance
    conditions  keywords of every call (class labels, embeddings, dictionaries of them), tensors of 1 or n rows. Those
                of single samples are the `condition` of `sample`, and take precedence

    A learned variance makes the model give central moments (`LearnedVariance`), so that SNDDPM(clip_pixel=None) over
    all steps is the library's own sampling. On coarser grids the same Var[x_0|x_t] is used: the variance of longer
    steps follows from it, which the network was not trained for but which the law of x_0 demands.
    Raises ValueError or TypeError naming the argument.
    """
    outer = network
    bare = unwrapped(network)
    if not isinstance(bare, tuple) and not callable(bare):
        raise TypeError(f"network must be callable, a pipeline, or (network, scheduler): got {type(bare).__name__}")
    if moments not in (None, *_MOMENTS):
        raise ValueError(f"moments must be one of {', '.join(_MOMENTS)}, or None: got {moments!r}")
    if prediction is not None and prediction not in predictions.names():
        raise ValueError(f"prediction must be one of {', '.join(predictions.names())}: got {prediction!r}")
    schedule = schedules.build(schedule) if schedule is not None else None
    host = hosts.of_kind(kind, bare).host(outer, bare, schedule, prediction)
    return Wrapped(host, moments, conditions)


class Wrapped(torch.nn.Module):
    """The model that `wrap` makes: a network with all that `sample` asks of a model."""

    def __init__(self, host: Host, moments: str | None, conditions: Mapping[str, object]) -> None:
        super().__init__()
        self.network = host.network
        if isinstance(host.bare, torch.nn.Module) and not isinstance(host.network, torch.nn.Module):
            self.bare = host.bare  # whose weights a partial hides
        self.schedule = _told("schedule", host.schedule, host)
        self.prediction = _told("prediction", host.prediction, host)
        if host.clip != UNSAID:
            self.clip = host.clip
        self.sample_shape = host.sample_shape
        self.moments = "raw" if moments == "raw" else "central"
        self.host, self._said, self.conditions = host, moments, dict(conditions)
        learned = moments == _LEARNED or (moments is None and host.learned)
        self._learned = LearnedVariance(self.schedule) if learned and isinstance(self.schedule, schedules.VP) else None
        self.train(getattr(host.network, "training", False))

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype in which x is given to the network."""
        return self.host.dtype(self.host.bare)

    @property
    def needed(self) -> tuple[str, ...]:
        """Conditions that each call must give: those that the network depends on and is not given already."""
        return tuple(self._missing(self.conditions))

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor | NoiseMoments:
        dtype = self.dtype or x.dtype
        given = {**self.conditions, **condition}
        self._check_given(given)
        time = t.to(torch.promote_types(dtype, torch.float32)) if t.is_floating_point() else t
        seen = {name: _for_batch(name, value, len(x), x.device, dtype) for name, value in given.items()}
        output = _unpacked(self.host.call(self.network, x.to(dtype), time, **seen), self._said)
        if not isinstance(output, Tensor) or output.shape == x.shape:
            return output
        return self._split(output, x, t)

    def _missing(self, given: Mapping[str, Any]) -> list[str]:
        present = {name for name, value in (*given.items(), *_keywords(self.network)) if value is not None}
        return [name for name in self.host.needed if name not in present]

    def _check_given(self, given: Mapping[str, Any]) -> None:
        if missing := self._missing(given):
            raise ValueError(
                f"{missing[0]} must be given, as wrap(network, {missing[0]}=...) or "
                f'sample(model, condition={{"{missing[0]}": ...}}): {type(self.host.bare).__name__} depends on it'
            )

    def _split(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor | NoiseMoments:
        """Mean and learned variance of 2C channels."""
        if output.ndim < 2 or output.shape != (len(x), 2 * x.shape[1], *x.shape[2:]):
            raise ValueError(f"network must give as many channels as x, {tuple(x.shape)}: got {tuple(output.shape)}")
        if self._learned is None:
            raise ValueError(
                f'moments must be "{_LEARNED}", and schedule a VP, where the second half of the output is a learned '
                f"variance; otherwise wrap a callable that drops it: {type(self.host.bare).__name__} gives "
                f"{output.shape[1]} channels for {x.shape[1]}"
            )
        y, v = output.chunk(2, dim=1)
        alpha, sigma, *_ = self._learned.at(t, x)
        e1 = predictions.to_noise(self.prediction, y, x.to(y.dtype), alpha.to(y.dtype), sigma.to(y.dtype))
        return NoiseMoments(e1, self._learned.second(v, t))


def _told(name: str, value: Told | None, host: Host) -> Told:
    if value is None:
        raise ValueError(f"{name} must be given: {type(host.bare).__name__} does not tell it")
    return value


def _unpacked(output: Any, moments: str | None) -> Any:
    """The tensor of what a network returns, or the moments that it is said to."""
    if isinstance(output, NoiseMoments):
        return output
    if moments in ("raw", "central") and isinstance(output, (tuple, list)) and 1 <= len(output) <= 3:
        return NoiseMoments(*output)
    if isinstance(output, Mapping) and "sample" in output:
        return output["sample"]
    if isinstance(output, (tuple, list)) and len(output):
        return output[0]
    sample = getattr(output, "sample", None)
    return sample if isinstance(sample, Tensor) else output


def _for_batch(name: str, value: Any, n: int, device: torch.device, dtype: torch.dtype) -> Any:
    """A condition for n samples where x is; of numbers that are not whole in the network's dtype."""
    if isinstance(value, Mapping):
        return {key: _for_batch(f"{name}[{key!r}]", v, n, device, dtype) for key, v in value.items()}
    if not isinstance(value, Tensor):
        return value
    value = value.to(device, dtype if value.is_floating_point() else value.dtype)
    if value.ndim and len(value) not in (1, n):
        raise ValueError(
            f"{name} must have 1 row or {n}, as many as there are samples: got {tuple(value.shape)}; "
            "conditions of single samples are the `condition` of `sample`"
        )
    return value.expand(n, *value.shape[1:]) if value.ndim else value


def _keywords(network: Any) -> Iterator[tuple[str, Any]]:
    """The keywords that are bound to a network by functools.partial."""
    for layer in layers(network):
        if isinstance(layer, partial):
            yield from layer.keywords.items()
