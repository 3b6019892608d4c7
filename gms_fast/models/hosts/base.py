"""Description of a network of another library."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gms_fast.assumptions import UNSAID
from gms_fast.network import ARITHMETIC, weights_of
from gms_fast.schedules import Schedule
from gms_fast.types import NoiseMoments

_PIXEL_CHANNELS = (1, 3)  # any other number are latents


def called(network: Callable[..., Any], x: Tensor, t: Tensor, **conditions: Any) -> Any:
    """A network that takes x and t first."""
    return network(x, t, **conditions)


def dtype_of_weights(bare: object) -> torch.dtype | None:
    """The dtype that a network says, or that all of its parameters have that are not mere storage; else None."""
    said = getattr(bare, "dtype", None)
    found = {said} if said in ARITHMETIC else {weight.dtype for weight in weights_of(bare)} & {*ARITHMETIC}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True, kw_only=True)
class Host:
    """A network as its library has it.

    network       what is called
    bare          the network without torch's wrappers: what is looked at
    schedule, prediction, sample_shape  None where the network does not tell
    clip          (lo, hi) of the data, None for latents, or UNSAID
    learned       whether outputs of 2C channels hold a learned variance, None if unknown
    needed        keywords without which the network is not to be called
    features      the module before its output, by name in `bare`: what moment heads read is its input; None if unknown
    call          network, x, t, **conditions -> output
    dtype         bare -> the dtype in which x is to be given
    """

    network: Callable[..., Any]
    bare: Any
    schedule: Schedule | None = None
    prediction: str | None = None
    sample_shape: Sequence[int] | None = None
    clip: tuple[float, float] | str | None = UNSAID
    learned: bool | None = None
    needed: Sequence[str] = ()
    features: str | None = None
    call: Callable[..., Tensor | NoiseMoments] = called
    dtype: Callable[[Any], torch.dtype | None] = dtype_of_weights


def square(channels: int | None, size: Any) -> tuple[int, ...] | None:
    """(C, H, W) of a picture whose size is a number or (H, W); None if it is unknown."""
    if channels is None or size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


def range_of(channels: int | None) -> str | None:
    """The data range by the number of channels: latents lie anywhere, of what may be pixels nothing is said."""
    return UNSAID if channels in (None, *_PIXEL_CHANNELS) else None


def has(network: object, *names: str) -> bool:
    """Tell a network with all these attributes: files of networks often carry classes without their modules."""
    return all(hasattr(network, name) for name in names)


def first_of(network: object, *names: str) -> str | None:
    """The first of these names that is a module's."""
    return next((name for name in names if isinstance(getattr(network, name, None), torch.nn.Module)), None)


def root_modules(network: object) -> set[str]:
    """The packages that the classes of an object come from."""
    return {kind.__module__.partition(".")[0] for kind in type(network).__mro__}
