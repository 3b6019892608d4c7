"""Queue of the missing parts of a run, shared by processes through the folder alone."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from gms_fast.storage.claims import Claims

PATIENCE, LEAST = 3.0, 5.0  # a claim is slow after 3 times a part's mean time here, and at least 5 seconds
_POLL = (0.05, 5.0)  # seconds between two looks, growing from the first to the second
_WATCHED = 8  # claimed parts that an idle process watches


class Pause(NamedTuple):
    """Wait for other processes, in seconds."""

    seconds: float


class Queue:
    """Iterator over the parts for this process, until all parts are done by some process.

    A part is taken if nobody has a claim on it. If no such part is left, those of dead processes are taken, and then
    those of processes much slower than this one: two processes that draw the same part write the same bytes.

    Folders are listed again only when the known parts are used up. While others work on everything left, only a few
    parts are watched. So hundreds of processes put little load on a file system (docs/scale.md).

    Args:
        parts: Parts in this process's order.
        done: Returns the parts that are done, by a look at the folder.
        has: Returns True if a part is done.
        name: Returns the name of a part.
        claims: Claims on the parts.
        draw: Random generator that chooses another place if a part is claimed.
    """

    def __init__(
        self,
        parts: Sequence[int],
        done: Callable[[], set[int]],
        has: Callable[[int], bool],
        name: Callable[[int], str],
        claims: Claims,
        draw: random.Random | None = None,
    ) -> None:
        self.parts, self.done, self.has, self.name, self.claims = parts, done, has, name, claims
        self.draw = draw or random.Random()
        self._seconds, self._count, self._seen = 0.0, 0, set[int]()

    def __iter__(self) -> Iterator[int]:
        for step in self.steps():
            if isinstance(step, Pause):
                time.sleep(step.seconds)
            else:
                yield step

    def steps(self) -> Iterator["int | Pause"]:
        """Yield parts, and the pauses to make before the next part."""
        pause = _POLL[0]
        while left := self._left():
            claimed, before = self.claims.names(), self._count
            if free := [part for part in left if self.name(part) not in claimed]:
                yield from self._of(free)
            else:
                yield from self._watched(left[:_WATCHED])
            idle = self._count == before
            if idle and free:  # others were quicker, or the list is out of date
                yield Pause(pause)
            pause = min(2 * pause, _POLL[1]) if idle else _POLL[0]

    def _left(self) -> list[int]:
        """Return the parts that are not done, and sweep the claims of those that are."""
        done = self.done() | self._seen
        self.claims.sweep({self.name(part) for part in self.parts if part in done})
        return [part for part in self.parts if part not in done]

    def _of(self, free: list[int]) -> Iterator[int]:
        """Yield unclaimed parts until one turns out to be done: the list is then out of date."""
        place = 0
        while free:
            part = free.pop(place % len(free))
            if not self.claims.take(self.name(part)):
                place = self.draw.randrange(len(free) + 1)  # away from other processes
                continue
            if self._is_done(part):
                self.claims.drop(self.name(part))
                return
            yield from self._one(part)

    def _is_done(self, part: int) -> bool:
        """Test if a part is done, and remember it: lists of files may be out of date."""
        if self.has(part):
            self._seen.add(part)
        return part in self._seen

    def _one(self, part: int) -> Iterator[int]:
        """Yield a claimed part, and measure its time."""
        start = self.claims.clock()
        yield part
        self._seconds, self._count = self._seconds + self.claims.clock() - start, self._count + 1

    def _watched(self, parts: Sequence[int]) -> Iterator["int | Pause"]:
        """Yield pauses until these parts are done, or one part that can be taken over."""
        pause = _POLL[0]
        while parts := [part for part in parts if not self._is_done(part)]:
            for part in parts:
                if not self.claims.take(self.name(part), slow=self._patience()):
                    continue
                if not self._is_done(part):
                    yield from self._one(part)
                    return
                self.claims.drop(self.name(part))
            yield Pause(pause)
            pause = min(2 * pause, _POLL[1])

    def _patience(self) -> float | None:
        """Return the seconds after which a claim counts as slow; None before any part was timed."""
        return max(LEAST, PATIENCE * self._seconds / self._count) if self._count else None
