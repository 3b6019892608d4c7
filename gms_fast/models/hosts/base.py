"""Description of a network from another library."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gms_fast.assumptions import UNSAID
from gms_fast.network import ARITHMETIC, weights_of
from gms_fast.schedules import Schedule
from gms_fast.types import NoiseMoments

_PIXEL_CHANNELS = (1, 3)  # other numbers mean latents


def called(network: Callable[..., Any], x: Tensor, t: Tensor, **conditions: Any) -> Any:
    """Call a network that takes x and t first."""
    return network(x, t, **conditions)


def dtype_of_weights(bare: object) -> torch.dtype | None:
    """Return the dtype that a network states, or that all of its parameters share; else None.

    Dtypes in which no arithmetic is done, as of quantised storage, do not count.
    """
    said = getattr(bare, "dtype", None)
    found = {said} if said in ARITHMETIC else {weight.dtype for weight in weights_of(bare)} & {*ARITHMETIC}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True, kw_only=True)
class Host:
    """A network of another library, with its properties.

    Args:
        network: What is called.
        bare: The network without torch's wrappers, whose attributes are read.
        schedule: Noise schedule; None if it cannot be read from the network.
        prediction: Meaning of the output; None if it cannot be read from the network.
        sample_shape: Shape of one sample; None if it cannot be read from the network.
        clip: Range (lo, hi) of the data; None for latents, UNSAID where it is unknown.
        learned: True if outputs of 2C channels hold a learned variance; None if unknown.
        needed: Keywords that every call must give.
        features: Name of the module in `bare` whose input moment heads read; None if unknown.
        call: Function of (network, x, t, **conditions) that returns the output.
        dtype: Function of `bare` that returns the dtype in which x is given.
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
    """Return (C, H, W) of an image whose size is a number or (H, W); None if it is unknown."""
    if channels is None or size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


def range_of(channels: int | None) -> str | None:
    """Return the data range by the number of channels.

    It is None for latents, which have no range, and UNSAID for channels that may be pixels.
    """
    return UNSAID if channels in (None, *_PIXEL_CHANNELS) else None


def has(network: object, *names: str) -> bool:
    """Return True for a network with all these attributes.

    Attributes are tested because files of networks often carry classes without their modules.
    """
    return all(hasattr(network, name) for name in names)


def first_of(network: object, *names: str) -> str | None:
    """Return the first of these names that names a module of the network."""
    return next((name for name in names if isinstance(getattr(network, name, None), torch.nn.Module)), None)


def root_modules(network: object) -> set[str]:
    """Return the names of the packages that define the classes of an object."""
    return {kind.__module__.partition(".")[0] for kind in type(network).__mro__}
