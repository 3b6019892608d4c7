"""Training data: whole tensors or the batches of a loader, with or without conditions."""

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
_AT_A_TIME = 256  # images per call of the encoder
_ENOUGH = 8  # least number of images from which the scale of the data is judged


class Batches(Protocol):
    """Training batches by step; `fingerprint` identifies the data."""

    fingerprint: str

    def at(self, step: int, generator: torch.Generator) -> tuple[int, Callable[[slice], Batch]]:
        """Return the number of rows of a step's batch, and a function that returns some of them.

        `generator` is that of the step.
        """
        ...


class Wanted:
    """Requirements of a model on its training data.

    Attributes:
        name: Class name of the network, for messages.
        shape: Shape of one sample.
        clip: Data range (lo, hi), or None.
        std: Approximate standard deviation of data without a range.
        needed: Conditions that every call must give.
        takes: True if the network takes conditions at all.
        none: Class that stands for none; None where the network has no such class.
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
        """Return the images as float32, or uint8 unchanged, on their device.

        Raises ValueError for images of another shape or out of range.
        """
        if not isinstance(images, Tensor) or tuple(images.shape[1:]) != self.shape or not len(images):
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"data must be (N, {', '.join(map(str, self.shape))}) for this model: got {got}")
        if images.dtype == torch.uint8 and self.clip is not None:
            return images
        images = images.float()
        low, high = (float(v) for v in images.aminmax()) if bool(images.isfinite().all()) else (-torch.inf, torch.inf)
        lo, hi = self.clip or (-3e38, 3e38)
        if not lo <= low <= high <= hi:
            of = f"[{lo:g}, {hi:g}], the clip of the model: got {low:g} .. {high:g}"
            raise ValueError(f"data must be finite and lie in {of}")
        return images

    def floating(self, images: Tensor) -> Tensor:
        """Convert images to float32; bytes 0 .. 255 are mapped to the data range."""
        if images.dtype != torch.uint8:
            return images
        lo, hi = self.clip or (0, 255)
        return images.float() / (255 / (hi - lo)) + lo

    def scale(self, images: Tensor) -> None:
        """Raise ValueError for images that seem to be in another scale than the model's."""
        if images.dtype == torch.uint8:
            if int(images.max()) <= 1:
                raise ValueError("data must be uint8 in 0 .. 255, or floating point: got uint8 that are all 0 or 1")
            return
        if self.clip is None:
            std = float(images.std())
            if std and not self.std / 4 < std < self.std * 4:
                raise ValueError(
                    f"data must have a standard deviation near the model's data_std = {self.std:g}: got {std:.3g}; "
                    "scale latents as the network was trained"
                )
        elif self.clip[0] < 0 and float(images.min()) >= 0 and float(images.max()) > 0.5 and len(images.unique()) > 2:
            lo, hi = self.clip
            raise ValueError(
                f"data must fill [{lo:g}, {hi:g}]: got [0, {hi:g}] alone, as if images were in another scale (usual is "
                f"2 x - 1); for data that is never negative give the model clip=(0, {hi:g})"
            )

    def condition(self, given: Any, rows: int) -> Condition:
        """Return the condition as keywords; none for None.

        Raises ValueError where a needed condition is missing, where the network takes none, and for a wrong number
        of rows.
        """
        given = {} if given is None else given
        if isinstance(given, Tensor):
            if not self.needed:
                raise ValueError(
                    f"data must be images alone, or (images, {{name: tensor}}): {self.name} needs no condition, but "
                    "got one without a name"
                )
            if len(self.needed) > 1:
                asks = ", ".join(self.needed)
                raise ValueError(
                    f"data must have conditions by keyword, (images, {{name: tensor}}): {self.name} needs {asks}"
                )
            given = {self.needed[0]: given}
        if not isinstance(given, Mapping) or not all(isinstance(value, Tensor) for value in given.values()):
            raise ValueError(
                f"data must be images or (images, {{name: tensor}}): got {type(given).__name__} beside the images"
            )
        for name, value in given.items():
            if not value.ndim or len(value) != rows:
                raise ValueError(f"data must have a {name} for each of {rows} images: got {tuple(value.shape)}")
        if given and not self.takes:
            raise ValueError(f"data must be images alone: {self.name} takes no {next(iter(given))}")
        if missing := [name for name in self.needed if name not in given]:
            raise ValueError(f"data must be (images, condition) with {missing[0]}: {self.name} depends on it")
        if self.none is not None:
            # checked on the CPU: a GPU would fail later, without a message
            check_classes(given[self.needed[0]].cpu(), rows, self.none, self.none)
        return dict(given)

    def dropped(self, condition: Condition, rows: Tensor) -> Condition:
        """Replace the class of some rows by the class that stands for none.

        `rows` (N,) is True for those rows.
        """
        name = self.needed[0]
        y = condition[name].long()
        return {**condition, name: torch.where(sent(rows, y.device), self.none or 0, y)}


class Whole:
    """Training data in memory, from which every step takes random rows on their device.

    Args:
        images: Images (N, *) or latents.
        condition: Conditions by keyword, N rows each.
        size: Rows per batch.
        floating: Function that converts the images of a batch to float32.
        raw: Images before an encoder, for the fingerprint; None without an encoder.
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
        told = images if raw is None else raw  # latents may differ between GPU models
        self.fingerprint = fingerprints.of_tensors([told, *condition.values()])

    def at(self, step: int, generator: torch.Generator) -> tuple[int, Callable[[slice], Batch]]:
        chosen = torch.randint(len(self.images), (self.size,), generator=generator)

        def some(rows: slice) -> Batch:
            taken = {of: sent(chosen[rows], of) for of in {self.images.device, *self._devices}}
            condition = {name: value[taken[value.device]] for name, value in self._condition.items()}
            return self._floating(self.images[taken[self.images.device]]), condition

        return self.size, some


class Loaded:
    """Batches of an iterable, one per step; it starts again when it ends.

    The generator of torch that the iterable draws from is seeded by (seed, step), so that a loader shuffles alike when
    training resumes after a kill. The iterable is then read from the beginning of its round up to the step.
    """

    def __init__(self, data: Iterable[Any], wanted: Wanted, encoder: Encoder | None, seed: int) -> None:
        if isinstance(getattr(data, "sampler", None), torch.utils.data.DistributedSampler):
            raise ValueError("data must be the same on every rank, since each rank takes its rows of every batch: got "
                             "a loader with a DistributedSampler; remove it")  # fmt: skip
        self._data, self._wanted, self._encoder, self._seed = data, wanted, encoder, seed
        self._iterator: Iterator[Any] | None = None
        self._step = 0
        first = self._next(0)  # for the fingerprint and the checks
        self._kept: Batch | None = self._understood(first, 0)
        if len(self._kept[0]) >= _ENOUGH:
            wanted.scale(self._kept[0])
        seen = _parts(first)[0] if encoder is not None else self._kept[0]  # latents may differ between GPU models
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
        """Return the item of the iterable at a step; after its end, the first of a new round."""
        with torch.random.fork_rng(devices=[]):
            for again in (False, True):
                torch.manual_seed(seed_of(self._seed, step, 1))  # again for a new round, since its end may have drawn
                if self._iterator is None:
                    with interrupts.blocked((signal.SIGINT,)):  # Ctrl-C must not kill the workers
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
        raise ValueError(
            f"data must have a batch for every step, or be iterable more than once: it ended after {step} batches"
        )

    def _understood(self, found: Any, step: int) -> Batch:
        images, given = _parts(found)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self._seed, step, 2))
            images = self._wanted.images(images if self._encoder is None else _encoded(images, self._encoder))
            images = self._wanted.floating(images)
        return images, self._wanted.condition(given, len(images))


def _parts(found: Any) -> tuple[Any, Any]:
    """Split an item of an iterable into images and condition (or None)."""
    if isinstance(found, (tuple, list)) and len(found) in (1, 2):
        return found[0], found[1] if len(found) == 2 else None
    return found, None


def _length(data: Any) -> int:
    """Return the number of batches in a round; 0 where it is unknown."""
    try:
        return len(data)
    except TypeError:
        return 0


def whole(data: Any) -> tuple[Tensor, Any] | None:
    """Return images and condition (or None) of data in memory; None for an iterable."""
    if isinstance(data, Tensor):
        return data, None
    return data if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor) else None


def encoded(images: Tensor, encoder: Encoder, seed: int) -> Tensor:
    """Encode all images once; an encoder that draws random numbers uses the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, 2))
        return torch.cat([_encoded(part, encoder) for part in images.split(_AT_A_TIME)])


@torch.no_grad()
def _encoded(images: Tensor, encoder: Encoder) -> Tensor:
    latents = encoder(images)
    if not isinstance(latents, Tensor) or len(latents) != len(images):
        got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise ValueError(f"encoder must return a tensor with a row for each of {len(images)} images: got {got}")
    return latents.detach().float().cpu()
