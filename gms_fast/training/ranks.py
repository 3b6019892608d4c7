"""Processes that train together, one for each GPU: those of torchrun, or of a group that is there already."""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

Made = TypeVar("Made")


class Ranks:
    """This process among others that run the same lines: `rank` of `count`."""

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if together else 0
        self.count = distributed.get_world_size() if together else 1

    @property
    def first(self) -> bool:
        """Tell the one that writes files and shows progress."""
        return self.rank == 0

    def rows(self, total: int) -> slice:
        """Those of a batch of `total` that are this rank's. Raises ValueError where a rank would have none."""
        if total < self.count:
            raise ValueError(
                f"batches must have at least {self.count} rows, one for each rank: got {total}; see batch_size, and "
                "drop_last of a loader"
            )
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    @contextmanager
    def alone(self, hold: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """Have the first rank hold something during the block; where it cannot, no rank begins."""
        with ExitStack() as held:
            self.by_first(lambda: held.enter_context(hold()))
            yield

    def by_first(self, make: Callable[[], Made]) -> Made:
        """The result of a function that the first rank alone runs, on every rank; its error is raised on every one."""
        if self.count == 1:
            return make()
        said: list[Any] = [None, None]
        if self.first:
            try:
                said[0] = make()
            except Exception as error:
                said[1] = error
        distributed.broadcast_object_list(said)
        if said[1] is not None:
            raise said[1]
        return said[0]

    def total(self, numbers: Tensor) -> Tensor:
        """Sums over the ranks."""
        if self.count > 1:
            distributed.all_reduce(numbers)
        return numbers

    def learning(self, weights: list[nn.Parameter]) -> Callable[[Callable[[], Tensor]], Tensor]:
        """A call of a loss by which gradients of the weights become their means over the ranks.

        From then on the weights are those of the first rank.
        """
        module = _Called(weights)
        return module if self.count == 1 else DistributedDataParallel(module)


class _Called(nn.Module):
    """The weights that learn, apart from a network that may be large and is the same on every rank."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        return loss()


def gathered(device: torch.device) -> Ranks:
    """The ranks of the group there is, or under torchrun of one that is made here, and stays for what follows.

    It is not ended with a run: gloo's threads may wait for Python then, and Python for them.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
            atexit.register(_end)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks()


def _end() -> None:
    """End the group, of which NCCL wants to be told."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
