"""Processes that train together, one for each GPU: those of torchrun, or of a group that is there already."""

import atexit
import os
import re
import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

Made = TypeVar("Made")
_PATIENCE = 1800.0  # seconds that ranks wait for each other at their start, as torch's do


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
        with telling():
            distributed.broadcast_object_list(said)
        if said[1] is not None:
            raise said[1]
        return said[0]

    def total(self, numbers: Tensor) -> Tensor:
        """Sums over the ranks."""
        if self.count > 1:
            distributed.all_reduce(numbers)
        return numbers

    def learning(self, weights: list[nn.Parameter]) -> Callable[[Sequence[Callable[[], Tensor]]], Tensor]:
        """A call of losses, one after another, that adds to the gradients of the weights; it returns the losses' sum.

        What is added are means over the ranks, which meet once a call. From then on the weights are those of the first
        rank.
        """
        return _alone if self.count == 1 else _Together(weights)


def _alone(losses: Sequence[Callable[[], Tensor]]) -> Tensor:
    return torch.stack([_backward(loss()) for loss in losses]).sum()


def _backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss.detach()


class _Together:
    """Losses of several ranks. Memory holds one part at a time, and gradients go round with the last one."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        # One kernel gives the gradient of a weight (1, C, 3, 3) other strides along its side of 1: nothing to be slow.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        self._call = DistributedDataParallel(_Called(weights))
        # Torch puts gradients in other buckets after the first round, and buckets say in which order ranks are added.
        # With that round made here, a run that goes on adds as one that never stopped.
        self([lambda: torch.stack([weight.sum() for weight in weights]).sum()])
        for weight in weights:
            weight.grad = None

    def __call__(self, losses: Sequence[Callable[[], Tensor]]) -> Tensor:
        with self._call.no_sync():
            found = [_backward(self._call(loss)) for loss in losses[:-1]]
        return torch.stack([*found, _backward(self._call(losses[-1]))]).sum()


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
        from torch.distributed.rendezvous import rendezvous

        with telling():
            store, rank, count = next(rendezvous("env://"))
            backend = "nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, store=_fresh(store, rank, count), rank=rank, world_size=count)
    return Ranks()


def _fresh(store: "Store", rank: int, count: int) -> "Store":
    """A part of the store that these processes alone have written to, when all of them are there.

    A store of torchrun outlives a restart of the ranks, and says where those were that ended (pytorch issue 135712).
    """
    from torch.distributed import distributed_c10d

    mine, end = f"gms_fast/{rank}/{secrets.token_hex(8)}", time.monotonic() + _PATIENCE
    store.set(f"gms_fast/{rank}", mine)
    known = [f"gms_fast/{k}" for k in range(count)]
    while time.monotonic() < end:
        if store.check(known):  # some may be of an earlier start
            all_of_them = " ".join(store.get(key).decode() for key in known)
            store.set(f"{all_of_them} {mine}", "seen")
            if store.check([f"{all_of_them} {name}" for name in all_of_them.split()]):
                return distributed_c10d.PrefixStore(all_of_them, store)
        time.sleep(0.02)
    raise ConnectionError(f"{count} ranks must start within {_PATIENCE} s of each other: some are missing")


@contextmanager
def telling() -> Iterator[None]:
    """Have an error of the group, as when another rank was killed, raise ConnectionError, which says so in a line."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error).lower():
            raise
        reason = re.sub(r"\[/\S+\] ", "", str(error).splitlines()[0]).partition(". ")[0]  # without places in sources
        raise ConnectionError(f"another rank has ended, or cannot be reached: {reason}") from error


def _end() -> None:
    """End the group, of which NCCL wants to be told."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
