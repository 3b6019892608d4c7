"""Training data: tensors as a whole, or batches as they come from a loader; images, or images with conditions."""

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from gms_fast import interrupts
from gms_fast.models.classes import check_classes
from gms_fast.storage import fingerprints
from gms_fast.training.noising import seed_of, sent

Condition = dict[str, Tensor]
Batch = tuple[Tensor, Condition]
Encoder = Callable[[Tensor], Tensor]
_AT_A_TIME = 256  # images that are encoded
_ENOUGH = 8  # images that tell of what range the data is


class Batches(Protocol):
    """Batches by step. `fingerprint` tells the data from other data."""

    fingerprint: str

    def at(self, step: int, generator: torch.Generator) -> tuple[int, Callable[[slice], Batch]]:
        """(rows of the batch of a step, what gives some of them); the generator is that of the step."""
        ...


class Wanted:
    """Demands of a model on its training data.

    shape   of one sample
    clip    range of the data, or None
    std     about the standard deviation of data without a range, or None
    needed  conditions without which the network is not to be called
    takes   whether it takes any
    none    the class that stands for none, of a network with classes that has one
    """

    def __init__(self, model: Any) -> None:
        self.name = type(getattr(model, "bare", model)).__name__
        self.shape = tuple(model.sample_shape)
        self.clip: tuple[float, float] | None = model.clip
        self.std: float = model.data_std
        self.needed: tuple[str, ...] = tuple(getattr(model, "needed", ()))
        self.takes = hasattr(model, "needed")
        self.none: int | None = getattr(getattr(model, "bare", model), "no_class", None)

    def images(self, images: Tensor) -> Tensor:
        """The images as float32, or bytes as they are, where they lie. Raises ValueError for others than are wanted."""
        if not isinstance(images, Tensor) or tuple(images.shape[1:]) != self.shape or not len(images):
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"data must be (N, {', '.join(map(str, self.shape))}) for this model: got {got}")
        if images.dtype == torch.uint8 and self.clip is not None:
            return images
        images = images.float()
        low, high = (float(v) for v in images.aminmax()) if bool(images.isfinite().all()) else (-torch.inf, torch.inf)
        lo, hi = self.clip or (-3e38, 3e38)
        if not lo <= low <= high <= hi:
            of = f"[{lo:g}, {hi:g}]: got {low:g} .. {high:g}; the range is the model's clip"
            raise ValueError(f"data must be finite and lie in {of}")
        return images

    def floating(self, images: Tensor) -> Tensor:
        """Images of `images` as float32: of bytes, 0 .. 255 stand for the range of the data."""
        if images.dtype != torch.uint8:
            return images
        lo, hi = self.clip or (0, 255)
        return images.float() / (255 / (hi - lo)) + lo

    def scale(self, images: Tensor) -> None:
        """Raise ValueError for images in another unit than the model's, as far as all of them tell."""
        if images.dtype == torch.uint8:
            if int(images.max()) <= 1:
                raise ValueError("data must be bytes of 0 .. 255, or floating point: all of its bytes are 0 or 1")
            return
        if self.clip is None:
            std = float(images.std())
            if std and not self.std / 4 < std < self.std * 4:
                raise ValueError(
                    f"data must have a standard deviation near data_std = {self.std:g} of the model: got {std:.3g}; "
                    "latents are scaled before a network sees them"
                )
        elif self.clip[0] < 0 and float(images.min()) >= 0 and float(images.max()) > 0.5 and len(images.unique()) > 2:
            lo, hi = self.clip
            raise ValueError(
                f"data must lie in [{lo:g}, {hi:g}]: all of it is in [0, {hi:g}], as of pictures of another scale "
                f"(2 x - 1 is the usual one); for data that is positive give the model clip=(0, {hi:g})"
            )

    def condition(self, given: Any, rows: int) -> Condition:
        """The condition as keywords, none for None.

        Raises ValueError where one is missing, where the network takes none, and for one of other rows.
        """
        given = {} if given is None else given
        if isinstance(given, Tensor):
            if not self.needed:
                raise ValueError(f"data must be images alone: {self.name} asks for no condition, and got one unnamed")
            if len(self.needed) > 1:
                asks = ", ".join(self.needed)
                raise ValueError(
                    f"data must have conditions by keyword, (images, {{name: values}}): {self.name} asks for {asks}"
                )
            given = {self.needed[0]: given}
        if not isinstance(given, Mapping) or not all(isinstance(value, Tensor) for value in given.values()):
            raise ValueError(
                f"data must be images or (images, {{name: tensor}}): got {type(given).__name__} beside them"
            )
        for name, value in given.items():
            if not value.ndim or len(value) != rows:
                raise ValueError(f"data must have a {name} for each of {rows} images: got {tuple(value.shape)}")
        if given and not self.takes:
            raise ValueError(f"data must be images alone: {self.name} takes no {next(iter(given))}")
        if missing := [name for name in self.needed if name not in given]:
            raise ValueError(f"data must be (images, condition) with {missing[0]}: {self.name} depends on it")
        if self.none is not None:
            check_classes(given[self.needed[0]].cpu(), rows, self.none, self.none)  # before a GPU fails by them
        return dict(given)

    def dropped(self, condition: Condition, rows: Tensor) -> Condition:
        """The condition without the class of some rows (N,), True for those."""
        name = self.needed[0]
        y = condition[name].long()
        return {**condition, name: torch.where(sent(rows, y.device), self.none or 0, y)}


class Whole:
    """Tensors, of which every step takes rows at random, where they lie.

    floating  what makes float32 of the images of a batch
    raw       what the images were before an encoder
    """

    def __init__(
        self,
        images: Tensor,
        condition: Condition,
        size: int,
        floating: Callable[[Tensor], Tensor] = lambda images: images,
        raw: Tensor | None = None,
    ) -> None:
        self.images, self._condition, self.size, self._floating = images, condition, size, floating
        self._devices = {value.device for value in condition.values()}
        told = images if raw is None else raw  # an encoder may differ from card to card
        self.fingerprint = fingerprints.of_tensors([told, *condition.values()])

    def at(self, step: int, generator: torch.Generator) -> tuple[int, Callable[[slice], Batch]]:
        chosen = torch.randint(len(self.images), (self.size,), generator=generator)

        def some(rows: slice) -> Batch:
            taken = {of: sent(chosen[rows], of) for of in {self.images.device, *self._devices}}
            condition = {name: value[taken[value.device]] for name, value in self._condition.items()}
            return self._floating(self.images[taken[self.images.device]]), condition

        return self.size, some


class Loaded:
    """Batches of an iterable, a step each, from its beginning again when it ends.

    A generator of torch's that the iterable draws from is seeded by (seed, step), so that a loader shuffles alike when
    training goes on after a kill; it is then read from the beginning of its round up to the step.
    """

    def __init__(self, data: Iterable[Any], wanted: Wanted, encoder: Encoder | None, seed: int) -> None:
        if isinstance(getattr(data, "sampler", None), torch.utils.data.DistributedSampler):
            raise ValueError("data must be the same on every rank, which takes its rows of a batch: got a loader with "
                             "a DistributedSampler")  # fmt: skip
        self._data, self._wanted, self._encoder, self._seed = data, wanted, encoder, seed
        self._iterator: Iterator[Any] | None = None
        self._step = 0
        first = self._next(0)  # it tells what the data is
        self._kept: Batch | None = self._understood(first, 0)
        if len(self._kept[0]) >= _ENOUGH:
            wanted.scale(self._kept[0])
        seen = _parts(first)[0] if encoder is not None else self._kept[0]  # an encoder may differ from card to card
        self.fingerprint = fingerprints.of_tensors([seen, *self._kept[1].values()])

    def at(self, step: int, generator: torch.Generator) -> tuple[int, Callable[[slice], Batch]]:
        images, condition = self._batch(step)
        return len(images), lambda rows: (images[rows], {name: value[rows] for name, value in condition.items()})

    def _batch(self, step: int) -> Batch:
        if self._kept is not None and step == 0:
            kept, self._kept = self._kept, None
            return kept
        if self._kept is not None:
            self._kept = None
            length = _length(self._data)
            if length and step >= length:  # earlier rounds are not read again
                self._iterator, self._step = None, step - step % length
        while self._step < step:
            self._next(self._step)
        return self._understood(self._next(step), step)

    def _next(self, step: int) -> Any:
        """The item of the iterable at a step, the first of a round where it has ended."""
        with torch.random.fork_rng(devices=[]):
            for again in (False, True):
                torch.manual_seed(seed_of(self._seed, step, 1))  # the end of a round may draw
                if self._iterator is None:
                    with interrupts.blocked((signal.SIGINT,)):  # workers would end by a Ctrl-C, and fail the step
                        self._iterator = iter(self._data)
                try:
                    found = next(self._iterator)
                except StopIteration:
                    if again or self._data is self._iterator:
                        break
                    self._iterator = None
                else:
                    self._step = step + 1
                    return found
        raise ValueError(f"data must have a batch for every step, or be iterable again: it ended after {step}")

    def _understood(self, found: Any, step: int) -> Batch:
        images, given = _parts(found)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self._seed, step, 2))
            images = self._wanted.images(images if self._encoder is None else _encoded(images, self._encoder))
            images = self._wanted.floating(images)
        return images, self._wanted.condition(given, len(images))


def _parts(found: Any) -> tuple[Any, Any]:
    """Images and condition (or None) of what an iterable gives."""
    if isinstance(found, (tuple, list)) and len(found) in (1, 2):
        return found[0], found[1] if len(found) == 2 else None
    return found, None


def _length(data: Any) -> int:
    """Batches of a round, 0 where that is unknown."""
    try:
        return len(data)
    except TypeError:
        return 0


def whole(data: Any) -> tuple[Tensor, Any] | None:
    """Images and condition (or None) of data that is there as a whole."""
    if isinstance(data, Tensor):
        return data, None
    return data if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor) else None


def encoded(images: Tensor, encoder: Encoder, seed: int) -> Tensor:
    """Latents of all images, made once; an encoder that draws does so from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, 2))
        return torch.cat([_encoded(part, encoder) for part in images.split(_AT_A_TIME)])


@torch.no_grad()
def _encoded(images: Tensor, encoder: Encoder) -> Tensor:
    latents = encoder(images)
    if not isinstance(latents, Tensor) or len(latents) != len(images):
        got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise ValueError(f"encoder must give a tensor with a row for each of {len(images)} images: got {got}")
    return latents.detach().float().cpu()
