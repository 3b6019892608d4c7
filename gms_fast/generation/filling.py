"""The making of what is not there yet, together with other processes that do the same."""

import time
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from gms_fast.generation.drawing import device_kind, one_thread
from gms_fast.generation.job import Job, Report
from gms_fast.generation.queue import Queue
from gms_fast.generation.settings import CLAIMS
from gms_fast.generation.shards import OtherRunError
from gms_fast.generation.writer import Writer
from gms_fast.storage.claims import Claims

_LOOK = 5.0  # seconds between two looks at what other processes have done


def fill(job: Job, *, progress: bool) -> Report:
    """Make the parts that are not there, until all are, and tell what was done here."""
    job.refuse_strangers()
    broken = _remove_broken(job)
    _warn_of_idleness(job)
    with one_thread(job.device), Claims(job.out / CLAIMS) as claims:
        job.shards.sweep(claims.held)
        if job.measured is not None:
            job.measured.begin(claims)
        there = job.samples(job.drawn() if job.shards.kept else job.done())
        done = job.samples(job.done())
        with job.bar(job.samples(job.parts), done, shown=progress) as told:
            filling = _Filling(job, claims, told if progress and job.rank == 0 else None, done)
            filling.walk()
            while job.measured is not None and job.rank == 0 and not job.measured.finish(set(job.parts)):
                filling.walk()
            if job.measured is not None:
                job.measured.end(claims)
        job.shards.sweep(claims.held)
    return Report(drawn=filling.count, there=there, broken=broken)


class _Filling:
    """Walks through the parts that are left; `count` is the number of samples that were drawn on them."""

    def __init__(self, job: Job, claims: Claims, told: Callable[[int], object] | None, shown: int) -> None:
        self.job, self.claims, self.told, self.count = job, claims, told, 0
        self._shown, self._looked = shown, time.monotonic()

    def walk(self) -> None:
        """Make parts until all are there; each is written while the next is drawn."""
        job = self.job
        with Writer(self._write) as writer:

            def look() -> set[int]:
                writer.wait()
                return self._seen(job.done())

            for part in Queue(self._order(), look, job.has, job.cut.name, self.claims):
                writer(part, *self._pictures(part))

    def _pictures(self, part: int) -> tuple[Tensor, dict[str, Any] | None]:
        """(pictures, how they were drawn): None for those of a shard that is there, but is not measured."""
        job = self.job
        if job.shards.kept and job.shards.has(part):
            return job.shards.read(part)[0], None
        self.count += len(job.cut[part])
        pictures, rows = job.drawing.part(job.cut[part], self._tell), job.drawing.rows
        fewer = {} if rows == job.drawing.batch_size else {"network_rows": rows}
        return pictures, {"device": device_kind(job.device), **fewer}

    def _write(self, part: int, pictures: Tensor, said: dict[str, Any] | None) -> None:
        """Write and measure a part, and give up the claim on it, whatever comes of it."""
        job, name = self.job, self.job.cut.name(part)
        try:
            if said is not None:
                self._keep(part, pictures, said)
            if job.measured is not None:
                job.measured.add(part, pictures, lambda: self.claims.ours(name))
        finally:
            self.claims.drop(name)

    def _keep(self, part: int, pictures: Tensor, said: dict[str, Any]) -> None:
        """Write a part, unless a process that took it for that of a slow one has; it may also sweep our scratch."""
        shards = self.job.shards
        if shards.has(part):
            return
        try:
            shards.write(part, pictures, **said)
        except FileNotFoundError:
            if not shards.has(part):
                raise

    def _order(self) -> list[int]:
        """The parts, each rank beginning at a place of its own."""
        first = len(self.job.parts) * self.job.rank // self.job.world
        return self.job.parts[first:] + self.job.parts[:first]

    def _tell(self, samples: int) -> None:
        """Show samples that were drawn here, and now and then those of other processes."""
        if self.told is None:
            return
        self._shown += samples
        self.told(samples)
        if time.monotonic() - self._looked > _LOOK:
            self._seen(self.job.done())

    def _seen(self, done: set[int]) -> set[int]:
        """The parts that are done, after the bar was told of those of others."""
        self._looked = time.monotonic()
        self._tell(max(0, self.job.samples(done) - self._shown))
        return done


def _remove_broken(job: Job) -> int:
    """Delete broken shards, of which each rank looks at a share; the number of them."""
    looked_at = job.drawn().intersection(job.parts[job.rank :: job.world]) if job.shards.kept else ()
    count = 0
    for part in sorted(looked_at):
        if _is_broken(job, part):
            job.shards.remove(part)  # at once: in a while it may be one that another process has made anew
            count += 1
    return count


def _is_broken(job: Job, part: int) -> bool:
    """Tell a broken shard, with a warning. Raises OtherRunError for a whole one of another run."""
    try:
        job.shards.read(part)
    except OtherRunError:
        raise
    except FileNotFoundError:  # another process has removed it
        return False
    except ValueError as error:
        warnings.warn(f"{error}; it is made anew", stacklevel=5)
        return True
    return False


def _warn_of_idleness(job: Job) -> None:
    if job.rank >= len(job.parts):
        warnings.warn(
            f"{len(job.parts)} shards are fewer than {job.world} ranks: rank {job.rank} draws only where another "
            "fails; a smaller shard_size makes more of them",
            stacklevel=4,
        )
