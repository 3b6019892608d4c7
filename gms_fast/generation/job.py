"""A run of generation in its folder: what belongs to it, and what is done of it."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from gms_fast.generation.drawing import Drawing
from gms_fast.generation.measured import Measured
from gms_fast.generation.settings import CLAIMS, FILE, MEASURED, WHOLE
from gms_fast.generation.shards import Shards
from gms_fast.storage import atomic
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
        found = re.fullmatch(r"(\d+)/(\d+)", str(text).strip(), re.ASCII)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"shard must be K/N with K from 1 to N, as 3/8: got {text!r}")
        return cls(int(found[1]), int(found[2]))

    def parts(self, count: int) -> list[int]:
        """Its parts of so many. Raises ValueError where there are fewer parts than shares."""
        if self.n > count:
            raise ValueError(f"shard must be of at most {count}, one for each shard file: got {self.k}/{self.n}")
        return list(range(self.k - 1, count, self.n))


class Job:
    """A run in the folder `out`; `parts` are those that this call is to see done, drawn and, if asked for, measured."""

    def __init__(
        self,
        out: Path,
        settings: dict[str, Any],
        parts: list[int],
        drawing: Drawing,
        shards: Shards,
        measured: Measured | None,
    ) -> None:
        self.out, self.settings, self.parts, self.cut = out, settings, parts, shards.cut
        self.drawing, self.shards, self.measured = drawing, shards, measured
        self.device: torch.device = drawing.arguments["device"]
        self.rank, self.world = (int(os.environ.get(name, default)) for name, default in _RANKS.items())

    def drawn(self) -> set[int]:
        """The parts that are drawn, by their names."""
        with naming(self.out):
            return self.shards.there(os.listdir(self.out)).intersection(self.parts)

    def done(self) -> set[int]:
        """The parts of which nothing is left to do."""
        return self.drawn() if self.measured is None else self.drawn() & self.measured.done()

    def has(self, part: int) -> bool:
        """Tell whether a part is one of them."""
        return self.shards.has(part) and (self.measured is None or part in self.measured.done())

    def samples(self, parts: Iterable[int]) -> int:
        """The number of samples in parts."""
        return sum(len(self.cut[part]) for part in parts)

    @contextmanager
    def bar(self, total: int, initial: int, *, shown: bool) -> Iterator[Callable[[int], object]]:
        """A callable to be told of more samples; the first rank alone shows them as a progress bar.

        Others have none: tqdm's lock is that of all forks of a process, and never free again after the kill of one.
        """
        if not shown or self.rank > 0:
            yield lambda samples: None
            return
        with tqdm(total=total, initial=initial, desc="generate", unit="image") as bar:
            yield bar.update

    def refuse_strangers(self) -> None:
        """Raise FileExistsError naming files that are not of the run."""
        known = {FILE, CLAIMS, MEASURED, WHOLE, *map(self.shards.name, range(len(self.cut)))}
        if strange := sorted(name for name in atomic.visible(self.out) if name not in known):
            few = ", ".join(strange[:3]) + (", .." if len(strange) > 3 else "")
            raise FileExistsError(f"out: {self.out} holds files of others ({few}): choose another folder, or move them")


_RANKS = {"RANK": 0, "WORLD_SIZE": 1}  # by which torchrun says who a process is
