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
    """Make a model of a network from another library.

    The model is called `(x, t, **condition)` and has the attributes that [`sample`][gms_fast.sample] needs: schedule,
    prediction, sample shape and data range, as far as the network tells them.

    Args:
        network: By kind. "diffusers": a network, a pipeline, or (network, scheduler). "edm": a preconditioned network.
            "guided-diffusion": a U-Net of guided-diffusion, improved-diffusion or their descendants. "dit": a DiT. Both
            also (network, diffusion), as their scripts create them. "denoising-diffusion": a network or
            GaussianDiffusion of denoising-diffusion-pytorch. "azula": a denoiser.
        kind: One of these names; None to recognise it from the network, which may be in torch's wrappers.
        schedule: Noise schedule, or its name; None if the network tells it.
        prediction: Meaning of the output: "noise", "x0", ...; None if the network tells it.
        moments: Further content of the output. "raw" or "central": the network returns moments (e1, e2, ..) of the
            noise. "learned-range": the second half of 2C channels is a learned variance as in improved DDPM. None: a
            learned variance for networks that are known to have one, else nothing.
        **conditions: Keywords of every call, such as class labels or embeddings: tensors with 1 or n rows, or
            dictionaries of them. The `condition` of `sample` takes precedence; use it for conditions of single samples.

    Returns:
        A module that `sample` and [`MomentHeads`][gms_fast.models.MomentHeads] take.

    Raises:
        ValueError: If the kind is unknown, the network does not tell its schedule or prediction, or a call lacks a
            condition.
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
        A learned variance gives central moments. `SNDDPM(clip_pixel=None)` over all steps is then the sampling of the
        library itself. Longer steps use the variance that follows from the same Var[x_0|x_t]; the network was not
        trained for them.
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
    """Model of a network from another library, the result of `wrap`."""

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
        """Type in which the network takes x."""
        return self.host.dtype(self.host.bare)

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the conditions that every call must give.

        The network needs them, and `conditions` does not hold them.
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
                f"{missing[0]} must be given, as wrap(network, {missing[0]}=...) or "
                f'sample(model, condition={{"{missing[0]}": ...}}): {type(self.host.bare).__name__} depends on it'
            )

    def _split(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor | NoiseMoments:
        """Split 2C channels into the moments of the noise that mean and learned variance give."""
        if output.ndim < 2 or output.shape != (len(x), 2 * x.shape[1], *x.shape[2:]):
            raise ValueError(f"network must return as many channels as x, {tuple(x.shape)}: got {tuple(output.shape)}")
        if self._learned is None:
            raise ValueError(
                f'moments must be "{_LEARNED}" and schedule a VP if the second half of the output is a learned '
                f"variance, else wrap a callable that drops it: {type(self.host.bare).__name__} returns "
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
            f"{name} must have 1 row or {n}, one for each sample: got {tuple(value.shape)}; "
            "give conditions of single samples as the `condition` of `sample`"
        )
    return value.expand(n, *value.shape[1:]) if value.ndim else value


def _keywords(network: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keywords that functools.partial has bound to a network."""
    for layer in layers(network):
        if isinstance(layer, partial):
            yield from layer.keywords.items()
