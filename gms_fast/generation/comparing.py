"""Verification of a run: some samples are drawn again and compared with the stored ones."""

import itertools
import math
import random
from collections.abc import Iterator

from torch import Tensor

from gms_fast.generation.drawing import device_kind, one_thread
from gms_fast.generation.job import Job, Report


def compare(job: Job, share: float, *, progress: bool) -> Report:
    """Draw a share of the samples again, in random batches, and compare them.

    Raises ValueError naming a shard that differs although the same kind of device drew it.
    """
    job.refuse_strangers()
    batches = list(_batches(job))
    if not batches:
        raise FileNotFoundError(f"out: {job.out} holds no shards to compare")
    chosen = random.SystemRandom().sample(batches, math.ceil(share * len(batches)))
    compared = pixels = differing = largest = 0
    with one_thread(job.device), job.bar(sum(len(i) for _, i in chosen), 0, shown=progress) as told:
        for part, indices, off, device in _differences(job, chosen):
            compared, pixels = compared + len(indices), pixels + off.numel()
            differing, worst = differing + int((off > 0).sum()), int(off.max())
            largest = max(largest, worst)
            if worst and device == device_kind(job.device):
                raise ValueError(
                    f"shard {job.out / job.shards.name(part)} differs from the images drawn here by up to {worst} grey "
                    f"levels, in samples {indices[0]} to {indices[-1]}"
                )
            told(len(indices))
    return Report(compared=compared, differing=differing / pixels, largest=largest)


def _batches(job: Job) -> Iterator[tuple[int, range]]:
    """Yield (part, indices) of every stored batch."""
    size = job.drawing.batch_size
    for part in sorted(job.drawn()) if job.shards.kept else ():
        indices = job.cut[part]
        yield from ((part, indices[i : i + size]) for i in range(0, len(indices), size))


def _differences(job: Job, batches: list[tuple[int, range]]) -> Iterator[tuple[int, range, Tensor, object]]:
    """Yield (part, indices, difference in grey levels, device) of batches, in order.

    The difference is between the stored images and images drawn here in the same way. The device is the one that drew
    the stored ones. Each shard is read once.
    """
    in_order = sorted(batches, key=lambda batch: batch[1].start)
    for part, some in itertools.groupby(in_order, key=lambda batch: batch[0]):
        kept, made = job.shards.read(part)
        job.drawing.rows = made.get("network_rows", job.drawing.batch_size)
        for _, indices in some:
            there = kept[indices.start - job.cut[part].start :][: len(indices)]
            yield part, indices, (there.int() - job.drawing.part(indices).int()).abs(), made.get("device")
