"""Processes that train together, one per GPU.

They are started by torchrun, or belong to a process group that already exists.
"""

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
_PATIENCE = 1800.0  # seconds that ranks wait for each other at their start, as in torch


class Ranks:
    """This process, number `rank` of `count` processes that run the same code."""

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if together else 0
        self.count = distributed.get_world_size() if together else 1

    @property
    def first(self) -> bool:
        """True on the rank that writes files and shows progress."""
        return self.rank == 0

    def rows(self, total: int) -> slice:
        """Return this rank's rows of a batch of `total`.

        Raises ValueError where a rank would have none.
        """
        if total < self.count:
            raise ValueError(
                f"batches must have at least {self.count} rows, one for each rank: got {total}; raise batch_size, or "
                "set drop_last in the loader"
            )
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    @contextmanager
    def alone(self, hold: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """Hold a context on the first rank during the block.

        If the first rank cannot enter it, no rank enters the block.
        """
        with ExitStack() as held:
            self.by_first(lambda: held.enter_context(hold()))
            yield

    def by_first(self, make: Callable[[], Made]) -> Made:
        """Run a function on the first rank alone, and return its result on every rank.

        An error of the function is raised on every rank.
        """
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
        """Return the sums over the ranks."""
        if self.count > 1:
            distributed.all_reduce(numbers)
        return numbers

    def learning(self, weights: list[nn.Parameter]) -> Callable[[Sequence[Callable[[], Tensor]]], Tensor]:
        """Return a function that accumulates the gradients of several losses.

        The function takes callables that compute one loss each, calls them in turn, and returns the sum of the losses.
        It adds the mean over the ranks to the gradients; the ranks synchronise once per call. From then on every rank
        has the weights of the first one.
        """
        return _alone if self.count == 1 else _Together(weights)


def _alone(losses: Sequence[Callable[[], Tensor]]) -> Tensor:
    return torch.stack([_backward(loss()) for loss in losses]).sum()


def _backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss.detach()


class _Together:
    """Gradients of losses that several ranks share.

    Memory holds one loss at a time. Gradients are exchanged with the last one.
    """

    def __init__(self, weights: list[nn.Parameter]) -> None:
        # One kernel returns gradients of weights (1, C, 3, 3) with another stride along the axis of size 1. That
        # costs no time, so the warning is of no use.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        self._call = DistributedDataParallel(_Called(weights))
        # Torch rebuilds its gradient buckets after the first backward pass, and the buckets determine the order in
        # which the ranks are summed. Making that pass here lets a resumed run sum as an uninterrupted one.
        self([lambda: torch.stack([weight.sum() for weight in weights]).sum()])
        for weight in weights:
            weight.grad = None

    def __call__(self, losses: Sequence[Callable[[], Tensor]]) -> Tensor:
        with self._call.no_sync():
            found = [_backward(self._call(loss)) for loss in losses[:-1]]
        return torch.stack([*found, _backward(self._call(losses[-1]))]).sum()


class _Called(nn.Module):
    """Module of the trained weights alone.

    It leaves out a frozen network, which may be large and is the same on every rank.
    """

    def __init__(self, weights: list[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        return loss()


def gathered(device: torch.device) -> Ranks:
    """Return the ranks of the process group.

    Under torchrun without a group, a group is made here and outlives the run. It is not ended with the run because
    gloo's threads and Python could then wait for each other.
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
    """Return a part of the store that only these processes use, once all have started.

    A store of torchrun outlives a restart of the ranks and still holds the addresses of those that ended
    (pytorch issue 135712).
    """
    from torch.distributed import distributed_c10d

    mine, end = f"gms_fast/{rank}/{secrets.token_hex(8)}", time.monotonic() + _PATIENCE
    store.set(f"gms_fast/{rank}", mine)
    known = [f"gms_fast/{k}" for k in range(count)]
    while time.monotonic() < end:
        if store.check(known):  # some keys may be left from an earlier start
            all_of_them = " ".join(store.get(key).decode() for key in known)
            store.set(f"{all_of_them} {mine}", "seen")
            if store.check([f"{all_of_them} {name}" for name in all_of_them.split()]):
                return distributed_c10d.PrefixStore(all_of_them, store)
        time.sleep(0.02)
    raise ConnectionError(
        f"{count} ranks must start within {_PATIENCE:g} s of each other: some are missing; look for their errors"
    )


@contextmanager
def telling() -> Iterator[None]:
    """Convert errors of the process group, as when another rank was killed, to ConnectionError.

    The message has one line.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error).lower():
            raise
        reason = re.sub(r"\[/\S+\] ", "", str(error).splitlines()[0]).partition(". ")[0]  # without source locations
        raise ConnectionError(f"another rank has ended, or cannot be reached: {reason}") from error


def _end() -> None:
    """End the process group, which NCCL expects before the process exits."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
