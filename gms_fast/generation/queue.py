"""The parts of a run that are left, shared by processes which know of each other by the folder alone."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from gms_fast.storage.claims import Claims

PATIENCE, LEAST = 3.0, 5.0  # times what a part takes here, and seconds, after which that of another is drawn too
_POLL = (0.05, 5.0)  # seconds between two looks, growing from one to the other
_WATCHED = 8  # parts of others that a process which has nothing to do looks at


class Pause(NamedTuple):
    """A wait for others, in seconds."""

    seconds: float


class Queue:
    """The parts for this process, one after the other, until all are done by someone.

    parts  in the order that this process would like
    done   gives those that are done: a look at the folder
    has    tells whether one is
    name   of a part
    draw   chooses a place further on where another process is at work

    A part is taken if nobody has a claim on it. When no such is left, those of processes that died are, and those of
    processes much slower than this one: two that draw the same part write the same bytes. Folders are listed when
    what is known of them has been used up, and while all others are at work a few parts are watched, so that hundreds
    of processes ask little of a file system (docs/scale.md).
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
        """Parts, and pauses that are to be made before the next."""
        pause = _POLL[0]
        while left := self._left():
            claimed, before = self.claims.names(), self._count
            if free := [part for part in left if self.name(part) not in claimed]:
                yield from self._of(free)
            else:
                yield from self._watched(left[:_WATCHED])
            idle = self._count == before
            if idle and free:  # others were quicker, or a list is that of a while ago
                yield Pause(pause)
            pause = min(2 * pause, _POLL[1]) if idle else _POLL[0]

    def _left(self) -> list[int]:
        done = self.done() | self._seen
        self.claims.sweep({self.name(part) for part in self.parts if part in done})
        return [part for part in self.parts if part not in done]

    def _of(self, free: list[int]) -> Iterator[int]:
        """Those of some parts that nobody else takes, until one is done: then there may be more."""
        place = 0
        while free:
            part = free.pop(place % len(free))
            if not self.claims.take(self.name(part)):
                place = self.draw.randrange(len(free) + 1)  # away from where others are
                continue
            if self._is_done(part):
                self.claims.drop(self.name(part))
                return
            yield from self._one(part)

    def _is_done(self, part: int) -> bool:
        """Tell a part that is done, and remember it: a list of files may be that of a while ago."""
        if self.has(part):
            self._seen.add(part)
        return part in self._seen

    def _one(self, part: int) -> Iterator[int]:
        """A part that is ours, and the time that it takes."""
        start = self.claims.clock()
        yield part
        self._seconds, self._count = self._seconds + self.claims.clock() - start, self._count + 1

    def _watched(self, parts: Sequence[int]) -> Iterator["int | Pause"]:
        """Pauses until these parts are done, or one that can be taken over."""
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
        """Seconds after which a claim is that of a slow process; None where nothing is known of how long parts take."""
        return max(LEAST, PATIENCE * self._seconds / self._count) if self._count else None
