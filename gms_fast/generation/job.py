"""Run of `generate` in its folder: its parts, its files, and its progress."""

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
    """Counts that a call of `generate` returns.

    Args:
        drawn: Samples that this process drew.
        there: Samples that the folder already had.
        broken: Broken shards that were found.
        compared: Samples that were drawn again and compared, with `verify`.
        differing: Share of their pixels that differ, 0 .. 1.
        largest: Largest difference in grey levels, 0 .. 255.
    """

    drawn: int = 0
    there: int = 0
    broken: int = 0
    compared: int = 0
    differing: float = 0.0
    largest: int = 0


@dataclass(frozen=True)
class Share:
    """The k-th of n shares of the parts, 1 <= k <= n."""

    k: int = 1
    n: int = 1

    @classmethod
    def of(cls, text: str) -> "Share":
        """Parse a string such as "3/8". Raises ValueError for any other string."""
        found = re.fullmatch(r"(\d+)/(\d+)", str(text).strip(), re.ASCII)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"shard must be K/N with K from 1 to N, such as 3/8: got {text!r}")
        return cls(int(found[1]), int(found[2]))

    def parts(self, count: int) -> list[int]:
        """Return its parts out of `count`. Raises ValueError if there are fewer parts than shares."""
        if self.n > count:
            raise ValueError(f"shard must be K/N with N at most {count}, the number of shards: got {self.k}/{self.n}")
        return list(range(self.k - 1, count, self.n))


class Job:
    """Run in the folder `out`; `parts` are those that this call has to complete.

    A part is complete when it is drawn and, if there are features, measured.
    """

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
        """Return the parts that are drawn."""
        with naming(self.out):
            return self.shards.there(os.listdir(self.out)).intersection(self.parts)

    def done(self) -> set[int]:
        """Return the parts that are complete."""
        return self.drawn() if self.measured is None else self.drawn() & self.measured.done()

    def has(self, part: int) -> bool:
        """True if a part is complete."""
        return self.shards.has(part) and (self.measured is None or part in self.measured.done())

    def samples(self, parts: Iterable[int]) -> int:
        """Return the number of samples in some parts."""
        return sum(len(self.cut[part]) for part in parts)

    @contextmanager
    def bar(self, total: int, initial: int, *, shown: bool) -> Iterator[Callable[[int], object]]:
        """Yield a callable for the number of new samples, with a progress bar on the first rank.

        Other ranks have no bar: all forks of a process share tqdm's lock, and a killed fork never releases it.
        """
        if not shown or self.rank > 0:
            yield lambda samples: None
            return
        with tqdm(total=total, initial=initial, desc="generate", unit="image") as bar:
            yield bar.update

    def refuse_strangers(self) -> None:
        """Raise FileExistsError naming files that do not belong to the run."""
        known = {FILE, CLAIMS, MEASURED, WHOLE, *map(self.shards.name, range(len(self.cut)))}
        if strange := sorted(name for name in atomic.visible(self.out) if name not in known):
            few = ", ".join(strange[:3]) + (", .." if len(strange) > 3 else "")
            raise FileExistsError(f"out: {self.out} holds other files ({few}): choose another folder, or move them")


_RANKS = {"RANK": 0, "WORLD_SIZE": 1}  # variables in which torchrun numbers its processes
