"""Drawing of the missing parts of a run, together with other processes."""

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

_LOOK = 5.0  # seconds between two checks of other processes' progress


def fill(job: Job, *, progress: bool) -> Report:
    """Draw the missing parts until all are there, and report on this process's share."""
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
    """Loop over the missing parts; `count` is the number of samples drawn so far."""

    def __init__(self, job: Job, claims: Claims, told: Callable[[int], object] | None, shown: int) -> None:
        self.job, self.claims, self.told, self.count = job, claims, told, 0
        self._shown, self._looked = shown, time.monotonic()

    def walk(self) -> None:
        """Draw parts until all are there; each is written while the next is drawn."""
        job = self.job
        with Writer(self._write) as writer:

            def look() -> set[int]:
                writer.wait()
                return self._seen(job.done())

            for part in Queue(self._order(), look, job.has, job.cut.name, self.claims):
                writer(part, *self._pictures(part))

    def _pictures(self, part: int) -> tuple[Tensor, dict[str, Any] | None]:
        """Return the images of a part and how they were drawn.

        The second value is None for a stored part that only lacks its statistics.
        """
        job = self.job
        if job.shards.kept and job.shards.has(part):
            return job.shards.read(part)[0], None
        self.count += len(job.cut[part])
        pictures, rows = job.drawing.part(job.cut[part], self._tell), job.drawing.rows
        fewer = {} if rows == job.drawing.batch_size else {"network_rows": rows}
        return pictures, {"device": device_kind(job.device), **fewer}

    def _write(self, part: int, pictures: Tensor, said: dict[str, Any] | None) -> None:
        """Write and measure a part, and release its claim in any case."""
        job, name = self.job, self.job.cut.name(part)
        try:
            if said is not None:
                self._keep(part, pictures, said)
            if job.measured is not None:
                job.measured.add(part, pictures, lambda: self.claims.ours(name))
        finally:
            self.claims.drop(name)

    def _keep(self, part: int, pictures: Tensor, said: dict[str, Any]) -> None:
        """Write a part, unless another process already has.

        A process that took over this claim may also have removed the temporary files; that is no error if the part is
        there.
        """
        shards = self.job.shards
        if shards.has(part):
            return
        try:
            shards.write(part, pictures, **said)
        except FileNotFoundError:
            if not shards.has(part):
                raise

    def _order(self) -> list[int]:
        """Return the parts in this rank's order: each rank starts at another place."""
        first = len(self.job.parts) * self.job.rank // self.job.world
        return self.job.parts[first:] + self.job.parts[:first]

    def _tell(self, samples: int) -> None:
        """Show samples drawn here on the bar, and from time to time those of other processes."""
        if self.told is None:
            return
        self._shown += samples
        self.told(samples)
        if time.monotonic() - self._looked > _LOOK:
            self._seen(self.job.done())

    def _seen(self, done: set[int]) -> set[int]:
        """Update the bar with the samples of other processes, and return the parts that are done."""
        self._looked = time.monotonic()
        self._tell(max(0, self.job.samples(done) - self._shown))
        return done


def _remove_broken(job: Job) -> int:
    """Delete broken shards, each rank among its share, and return their number."""
    looked_at = job.drawn().intersection(job.parts[job.rank :: job.world]) if job.shards.kept else ()
    count = 0
    for part in sorted(looked_at):
        if _is_broken(job, part):
            job.shards.remove(part)  # at once, before another process can replace it
            count += 1
    return count


def _is_broken(job: Job, part: int) -> bool:
    """Test if a shard is broken, with a warning. Raises OtherRunError for another run's."""
    try:
        job.shards.read(part)
    except OtherRunError:
        raise
    except FileNotFoundError:  # another process has removed it
        return False
    except ValueError as error:
        warnings.warn(f"{error}; it will be drawn again", stacklevel=5)
        return True
    return False


def _warn_of_idleness(job: Job) -> None:
    """Warn if there are fewer shards than ranks."""
    if job.rank >= len(job.parts):
        warnings.warn(
            f"there are only {len(job.parts)} shards for {job.world} ranks: rank {job.rank} has nothing to draw unless "
            "another rank fails; choose a smaller shard_size for more shards",
            stacklevel=4,
        )
