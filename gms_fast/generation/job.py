"""A run of generation in its folder: its checked arguments, what is there, and the filling of what is not."""

import math
import os
import random
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from gms_fast.generation.drawing import Drawing, device_kind, one_thread
from gms_fast.generation.queue import Queue
from gms_fast.generation.settings import CLAIMS, FILE
from gms_fast.generation.shards import OtherRunError, Shards
from gms_fast.generation.writer import Writer
from gms_fast.storage import atomic
from gms_fast.storage.claims import Claims
from gms_fast.storage.locks import naming


class Report(NamedTuple):
    """Numbers of a call of `generate`.

    drawn     samples that this process drew
    there     samples that were in the folder before
    broken    shards that were there and broken
    compared  samples that were drawn again and compared, `verify`
    differing share of their pixels that differ, 0 .. 1
    largest   largest difference, in grey levels
    """

    drawn: int = 0
    there: int = 0
    broken: int = 0
    compared: int = 0
    differing: float = 0.0
    largest: int = 0


@dataclass(frozen=True)
class Share:
    """The k-th of n shares of the parts, k from 1 on."""

    k: int = 1
    n: int = 1

    @classmethod
    def of(cls, text: str) -> "Share":
        """The share that a text like "3/8" says. Raises ValueError."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip(), re.ASCII)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"shard must be K/N with K from 1 to N, as 3/8: got {text!r}")
        return cls(int(found[1]), int(found[2]))

    def parts(self, count: int) -> list[int]:
        """Its parts of so many. Raises ValueError where there are fewer parts than shares."""
        if self.n > count:
            raise ValueError(f"shard must be of at most {count}, one for each shard file: got {self.k}/{self.n}")
        return list(range(self.k - 1, count, self.n))


class Job:
    """A run in the folder `out`; `parts` are those that this call is to see done."""

    def __init__(self, out: Path, settings: dict[str, Any], parts: list[int], drawing: Drawing, shards: Shards) -> None:
        self.out, self.settings, self.parts, self.cut = out, settings, parts, shards.cut
        self.drawing, self.shards = drawing, shards
        self.device: torch.device = drawing.arguments["device"]
        self.rank, self.world = (int(os.environ.get(name, default)) for name, default in _RANKS.items())

    def done(self) -> set[int]:
        """The parts that are there."""
        with naming(self.out):
            return self.shards.there(os.listdir(self.out))

    def fill(self, *, progress: bool) -> Report:
        """Draw what is not there, together with other processes that do, until all is there."""
        self._refuse_strangers()
        broken = self._remove_broken()
        before = self.done()
        mine = [part for part in self.parts if part in before]
        drawn = 0
        self._warn_of_idleness()
        with ExitStack() as held:
            held.enter_context(one_thread(self.device))
            claims = held.enter_context(Claims(self.out / CLAIMS))
            bar = held.enter_context(_bar(self._samples(self.parts), self._samples(mine), progress and self.rank == 0))
            writer = held.enter_context(Writer(lambda part, pictures: self._write(claims, part, pictures)))

            def look() -> set[int]:
                writer.wait()
                done = self.done()
                bar.update(max(0, self._samples(p for p in self.parts if p in done) - bar.n))
                return done

            for part in Queue(self._order(), look, self.shards.has, self.shards.name, claims):
                writer(part, self.drawing.part(self.cut[part], bar.update))
                drawn += len(self.cut[part])
        return Report(drawn=drawn, there=self._samples(mine), broken=broken)

    def compare(self, share: float, *, progress: bool) -> Report:
        """Draw a share of the samples again, batches chosen at random, and compare them with what is there.

        Raises ValueError naming a shard that differs though a device of this kind has drawn it.
        """
        self._refuse_strangers()
        batches = list(self._batches(self.done()))
        if not batches:
            raise FileNotFoundError(f"out: {self.out} holds no shard to compare")
        chosen = random.SystemRandom().sample(batches, math.ceil(share * len(batches)))
        compared = pixels = differing = largest = 0
        with one_thread(self.device), _bar(sum(len(i) for _, i in chosen), 0, progress and self.rank == 0) as bar:
            for part, indices in sorted(chosen, key=lambda batch: batch[1].start):
                off, device = self._difference(part, indices)
                compared, pixels = compared + len(indices), pixels + off.numel()
                differing, largest = differing + int((off > 0).sum()), max(largest, int(off.max()))
                if largest and device == device_kind(self.device):
                    raise ValueError(
                        f"shard {self.out / self.shards.name(part)} has other pictures than are drawn here, by up to "
                        f"{largest} grey levels, among samples {indices[0]} to {indices[-1]}"
                    )
                bar.update(len(indices))
        return Report(compared=compared, differing=differing / pixels, largest=largest)

    def _batches(self, done: set[int]) -> Iterator[tuple[int, range]]:
        """(part, indices) of every batch that is there."""
        size = self.drawing.batch_size
        for part in sorted(done.intersection(self.parts)):
            indices = self.cut[part]
            yield from ((part, indices[i : i + size]) for i in range(0, len(indices), size))

    def _difference(self, part: int, indices: range) -> tuple[Tensor, object]:
        """(difference in grey levels from pictures drawn here in the same way, device that drew those there)."""
        kept, made = self.shards.read(part)
        self.drawing.rows = made.get("network_rows", self.drawing.batch_size)
        there = kept[indices.start - self.cut[part].start :][: len(indices)]
        return (there.int() - self.drawing.part(indices).int()).abs(), made.get("device")

    def _write(self, claims: Claims, part: int, pictures: Tensor) -> None:
        fewer = {} if self.drawing.rows == self.drawing.batch_size else {"network_rows": self.drawing.rows}
        try:
            self.shards.write(part, pictures, device=device_kind(self.device), **fewer)
        finally:
            claims.drop(self.shards.name(part))

    def _order(self) -> list[int]:
        """The parts, each rank beginning at a place of its own."""
        first = len(self.parts) * self.rank // self.world
        return self.parts[first:] + self.parts[:first]

    def _warn_of_idleness(self) -> None:
        if self.rank >= len(self.parts):
            warnings.warn(
                f"{len(self.parts)} shards are fewer than {self.world} ranks: rank {self.rank} draws only where "
                "another fails; a smaller shard_size makes more of them",
                stacklevel=5,
            )

    def _samples(self, parts: Iterable[int]) -> int:
        return sum(len(self.cut[part]) for part in parts)

    def _refuse_strangers(self) -> None:
        """Raise FileExistsError naming files that are not of the run."""
        known = {FILE, CLAIMS, *map(self.shards.name, range(len(self.cut)))}
        if strange := sorted(name for name in atomic.visible(self.out) if name not in known):
            few = ", ".join(strange[:3]) + (", .." if len(strange) > 3 else "")
            raise FileExistsError(f"out: {self.out} holds files of others ({few}): choose another folder, or move them")

    def _remove_broken(self) -> int:
        """Delete broken shards, of which each rank looks at a share; the number of them."""
        looked_at = sorted(self.done().intersection(self.parts[self.rank :: self.world]))
        broken = [part for part in looked_at if self._broken(part)]
        for part in broken:
            self.shards.remove(part)
        return len(broken)

    def _broken(self, part: int) -> bool:
        """Tell a broken shard, with a warning. Raises OtherRunError for a whole one of another run."""
        try:
            self.shards.read(part)
        except OtherRunError:
            raise
        except ValueError as error:
            warnings.warn(f"{error}; it is made anew", stacklevel=7)
            return True
        return False


_RANKS = {"RANK": 0, "WORLD_SIZE": 1}  # by which torchrun says who a process is


def _bar(total: int, initial: int, shown: bool) -> "tqdm[Any]":
    return tqdm(total=total, initial=initial, disable=not shown, desc="generate", unit="image")
