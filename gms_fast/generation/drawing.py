"""Drawing of samples by index, in whole batches, so that each has the same neighbours.

A network may round differently in a batch of another size, or on a CPU with another number of threads. So the last
batch is drawn whole too, even if it goes beyond the last sample. On a CPU each process uses one thread; start more
processes to use more cores.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gms_fast.assumptions import attribute, missing
from gms_fast.generation.capacity import out_of_memory
from gms_fast.images import grey_levels
from gms_fast.sampling import sample

Condition = Mapping[str, Any] | Callable[[Tensor], Mapping[str, Any]] | None
Decoder = Callable[[Tensor], Tensor]


class Drawing:
    """Images of a run by index.

    Args:
        arguments: Arguments of `sample` that are the same for every batch: model, steps, solver, ..
        clip: Data range that `clip` of the arguments resolves to. It is used from the second batch on, so that only one
            batch warns of an assumed range.
        n: Number of samples of the run.
        batch_size: Number of samples in a batch.
        condition: Keywords for the network, checked by `check_condition`, or a callable from indices (B,) to keywords.
        decoder: Callable from samples to images.

    Attributes:
        rows: Number of samples that the network sees at a time: a batch, or less after memory has run out.
    """

    def __init__(
        self,
        arguments: dict[str, Any],
        clip: tuple[float, float] | None,
        n: int,
        batch_size: int,
        condition: Condition,
        decoder: Decoder | None,
    ) -> None:
        self.arguments, self.clip, self.n, self.batch_size = dict(arguments), clip, n, batch_size
        self.condition, self.decoder, self.rows = condition, decoder, batch_size

    def part(self, indices: range, told: Callable[[int], object] = lambda count: None) -> Tensor:
        """Return the images (N, C, H, W) of samples as grey levels, uint8 on the CPU.

        All samples are drawn with the same number of rows at a time, so that they can be drawn again in the same way.

        Args:
            indices: Indices of the samples.
            told: Called with the number of new images as they are drawn.

        Raises:
            ValueError: If a sample is not finite; the step is named.
            MemoryError: If there is not enough memory for a single sample.
        """
        pictures: Tensor | None = None
        for start in range(indices.start, indices.stop, self.batch_size):
            at_a_time, levels = self.rows, self._levels(start)
            if pictures is not None and self.rows < at_a_time:
                told(indices.start - start)
                return self.part(indices, told)
            stop = min(start + self.batch_size, indices.stop)
            if pictures is None:
                pinned = levels.device.type == "cuda"
                shape = len(indices), *levels.shape[1:]
                pictures = torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=pinned)
            rows = slice(start - indices.start, stop - indices.start)
            pictures[rows].copy_(levels[: stop - start], non_blocking=True)
            told(stop - start)
        if pictures is None:
            raise ValueError("indices must not be empty")
        if pictures.is_pinned():
            torch.cuda.current_stream(levels.device).synchronize()
        return pictures

    @cached_property
    @torch.no_grad()
    def shape(self) -> tuple[int, ...]:
        """Shape of one image. Raises ValueError if samples, or decoded samples, are no images."""
        model = self.arguments["model"]
        given = self.arguments["shape"] or attribute(model, "sample_shape")
        if given is None:
            raise ValueError(missing(model, "sample_shape", "shape"))
        x = torch.zeros((1, *given), dtype=self.arguments["dtype"], device=self.arguments["device"])
        return tuple(self._decoded(x).shape[1:])

    @torch.no_grad()
    def begin(self) -> None:
        """Take the first two steps of a batch, to measure them."""
        self._decoded(self._sampled(0, callback=_ending(1)))

    def conditions(self, start: int) -> dict[str, Any] | None:
        """Return the network's keywords for the batch that starts at an index."""
        index = torch.arange(start, start + self.batch_size).clamp(max=self.n - 1)
        if callable(self.condition):
            return check_condition(self.arguments["model"], self.condition(index), len(index))
        return None if self.condition is None else self._rows(self.condition, index)

    def said_of_conditions(self) -> Any:
        """Return the conditions as given; for a callable also four batches of its keywords."""
        if not callable(self.condition):
            return self.condition
        last = (self.n - 1) // self.batch_size
        some = sorted({last * i // 3 for i in range(4)})
        return [self.condition, *(self.conditions(self.batch_size * batch) for batch in some)]

    @torch.no_grad()
    def try_condition(self) -> None:
        """Call the network once with the condition, so that errors precede the folder.

        The call is for a whole batch: a compiled network might compute differently after it has seen other sizes.
        """
        if self.condition is None:
            return
        asked = {**self.arguments, "clip": self.clip}
        try:
            Drawing(asked, self.clip, self.n, self.batch_size, self.condition, None)._sampled(0, callback=_ending(0))
        except RuntimeError as error:
            if not out_of_memory(error):  # memory may suffice for smaller parts of a batch
                raise

    def _rows(self, value: Any, index: Tensor) -> Any:
        """Select the rows of these indices from a condition."""
        if isinstance(value, Mapping):
            return {name: self._rows(part, index) for name, part in value.items()}
        per_sample = isinstance(value, Tensor) and value.ndim > 0 and len(value) == self.n
        return value[index.to(value.device)] if per_sample else value

    @torch.no_grad()
    def _levels(self, start: int) -> Tensor:
        """Return the grey levels of a batch; halve the rows at a time if memory runs out."""
        while True:
            try:
                return self._drawn(start)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if self.rows == 1:
                    said = f"batch_size {self.batch_size} needs too much memory, even with one sample at a time"
                    raise MemoryError(said) from error
            self.rows = (self.rows + 1) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _drawn(self, start: int) -> Tensor:
        """Draw the grey levels of a batch."""
        return grey_levels(self._decoded(self._sampled(start)))

    def _sampled(self, start: int, **more: Any) -> Tensor:
        """Draw the samples of a batch."""
        x = sample(
            **self.arguments,
            n=self.batch_size,
            sample_offset=start,
            condition=self.conditions(start),
            batch_size=self.rows,
            **more,
        )
        self.arguments["clip"] = self.clip
        return x

    def _decoded(self, x: Tensor) -> Tensor:
        """Return the images of samples, checked."""
        if self.decoder is not None:
            x = torch.cat([self.decoder(part) for part in x.split(self.rows)])
        if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point():
            what = "samples" if self.decoder is None else "outputs of decoder"
            raise ValueError(
                f"{what} must be floating-point images (N, 1, H, W) or (N, 3, H, W): got {x.dtype} {tuple(x.shape)}"
            )
        return x


def _ending(last: int) -> Callable[..., None]:
    """Return a callback that ends a run before its step number `last`."""

    def end(step: int, *_: object) -> None:
        if step >= last:
            raise StopIteration

    return end


def check_condition(model: object, condition: Any, n: int) -> dict[str, Any]:
    """Return the network's keywords for n samples, checked.

    Tensors must have n rows, 1 row or no axis. Keywords that the model needs (`needed`) must be given. Raises TypeError
    or ValueError naming `condition`.
    """
    given = {} if condition is None else condition
    if not isinstance(given, Mapping):
        raise TypeError(f"condition must be a dict of keyword arguments for the model: got {type(given).__name__}")
    _check_rows("condition", given, n)
    for name in attribute(model, "needed", ()):
        if given.get(name) is None:
            raise ValueError(f"condition must contain {name!r}, which the model needs")
    return dict(given)


def _check_rows(name: str, value: Any, n: int) -> None:
    """Check the number of rows of every tensor in a condition."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_rows(f"{name}[{key!r}]", part, n)
    elif isinstance(value, (list, np.ndarray)):
        raise TypeError(f"{name} must be a tensor: got {type(value).__name__}")
    elif isinstance(value, Tensor) and value.ndim and len(value) not in (1, n):
        raise ValueError(f"{name} must have {n} rows, one per sample, or 1 row for all: got {tuple(value.shape)}")


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Use one CPU thread inside the block; other devices are not changed."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_kind(device: torch.device) -> str:
    """Return the kind of a device; devices of one kind compute the same images."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type
