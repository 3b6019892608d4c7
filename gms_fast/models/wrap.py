"""Wrap networks from other libraries as models for this one."""

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
    """Wrap a network from another library as a model.

    The model is called as `(x, t, **condition)`. It has the attributes that [`sample`][gms_fast.sample] uses, namely
    `schedule`, `prediction`, `sample_shape` and `clip`, as far as they can be read from the network.

    Args:
        network: Object to wrap. Each kind accepts different objects. "diffusers": a network, a pipeline, or a pair
            (network, scheduler). "edm": a preconditioned network. "guided-diffusion": a U-Net of guided-diffusion,
            improved-diffusion or their descendants, or a pair (network, diffusion) as created by their scripts. "dit":
            a DiT, or a pair (DiT, diffusion). "denoising-diffusion": a network or GaussianDiffusion of
            denoising-diffusion-pytorch. "azula": a denoiser. The network may be inside PyTorch's own wrappers.
        kind: One of the kinds above. By default, the kind is recognised from the network.
        schedule: Noise schedule or its name. Required if it cannot be read from the network.
        prediction: What the output represents: "noise", "x0", "v", "flow" or "edm", as in [`sample`][gms_fast.sample].
            Required if it cannot be read from the network.
        moments: Additional outputs of the network. "raw" or "central": the output is a tuple of noise moments
            (e1, e2, ..) of this kind. "learned-range": the second half of 2C output channels is a learned variance, as
            in improved DDPM. By default, a learned variance is assumed for networks that are known to have one.
        **conditions: Keyword arguments for every call, such as class labels or embeddings: tensors with 1 or n rows,
            or dictionaries of them. The `condition` of `sample` takes precedence and should be used for conditions that
            differ between samples.

    Returns:
        Module that [`sample`][gms_fast.sample] and [`MomentHeads`][gms_fast.models.MomentHeads] accept as a model.

    Raises:
        ValueError: If the kind is unknown, if the schedule or prediction cannot be read from the network and is not
            given, or if a call lacks a condition.
        TypeError: If `network` is neither callable nor a pipeline nor a pair.

    Examples:
        >>> import diffusers
        >>> network = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1,
        ...     block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
        >>> model = gms_fast.models.wrap((network.eval(), diffusers.DDPMScheduler()))
        >>> model.schedule, model.prediction
        (VP(T=1000), 'noise')
        >>> gms_fast.sample(model, 3, solver="ddim", n=2).shape
        torch.Size([2, 1, 8, 8])

    Note:
        A learned variance is converted to the second central moment of the noise. With as many steps as in training,
        `SNDDPM(clip_pixel=None)` then reproduces the sampling of the library that the network comes from. With fewer
        steps, the variance of each step is computed from the same Var[x_0|x_t], although the network was not trained
        for such steps.
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
    """Model that wraps a network from another library, as returned by `wrap`."""

    def __init__(self, host: Host, moments: str | None, conditions: Mapping[str, object]) -> None:
        super().__init__()
        self.network = host.network
        if isinstance(host.bare, torch.nn.Module) and not isinstance(host.network, torch.nn.Module):
            self.bare = host.bare  # registers weights that a functools.partial hides
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
        """Dtype in which the network expects x."""
        return self.host.dtype(self.host.bare)

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the conditions that every call must supply.

        They are those that the network needs and that `conditions` does not contain.
        """
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
                f"{missing[0]} must be given, as in wrap(network, {missing[0]}=...) or "
                f'sample(model, condition={{"{missing[0]}": ...}}): {type(self.host.bare).__name__} needs it'
            )

    def _split(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor | NoiseMoments:
        """Split 2C channels into the moments of the noise that mean and learned variance give."""
        if output.ndim < 2 or output.shape != (len(x), 2 * x.shape[1], *x.shape[2:]):
            raise ValueError(f"network must return as many channels as x, {tuple(x.shape)}: got {tuple(output.shape)}")
        if self._learned is None:
            raise ValueError(
                f'moments must be "{_LEARNED}" and schedule must be a VP if the second half of the output is a learned '
                f"variance; otherwise wrap a callable that drops that half: {type(self.host.bare).__name__} returns "
                f"{output.shape[1]} channels for {x.shape[1]}"
            )
        y, v = output.chunk(2, dim=1)
        alpha, sigma, *_ = self._learned.at(t, x)
        e1 = predictions.to_noise(self.prediction, y, x.to(y.dtype), alpha.to(y.dtype), sigma.to(y.dtype))
        return NoiseMoments(e1, self._learned.second(v, t))


def _told(name: str, value: Told | None, host: Host) -> Told:
    if value is None:
        raise ValueError(f"{name} must be given: it cannot be read from {type(host.bare).__name__}")
    return value


def _unpacked(output: Any, moments: str | None) -> Any:
    """Extract the tensor, or the moments that `moments` promises, from a network's output."""
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
    """Convert a condition for a batch of n samples.

    Tensors move to the device of x, and floating-point ones to the dtype of the network. Raises ValueError for a wrong
    number of rows.
    """
    if isinstance(value, Mapping):
        return {key: _for_batch(f"{name}[{key!r}]", v, n, device, dtype) for key, v in value.items()}
    if not isinstance(value, Tensor):
        return value
    value = value.to(device, dtype if value.is_floating_point() else value.dtype)
    if value.ndim and len(value) not in (1, n):
        raise ValueError(
            f"{name} must have 1 row or {n} rows, one per sample: got {tuple(value.shape)}; "
            "pass conditions that differ between samples as the `condition` of `sample`"
        )
    return value.expand(n, *value.shape[1:]) if value.ndim else value


def _keywords(network: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keywords that functools.partial has bound to a network."""
    for layer in layers(network):
        if isinstance(layer, partial):
            yield from layer.keywords.items()
