"""Many samples into a folder: the same bytes from one process or many, that come, go and are killed as they like."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gms_fast.assumptions import PICTURES, UNSAID, ranged
from gms_fast.generation import settings
from gms_fast.generation.capacity import fastest, free, use
from gms_fast.generation.clearing import clear
from gms_fast.generation.comparing import compare
from gms_fast.generation.drawing import Condition, Decoder, Drawing, check_condition, one_thread
from gms_fast.generation.filling import fill
from gms_fast.generation.job import Job, Report, Share
from gms_fast.generation.measured import Measured
from gms_fast.generation.shards import FORMS, Cut
from gms_fast.network import device_of
from gms_fast.plan import integer
from gms_fast.quality import extractors
from gms_fast.quality.extractors import Extractor
from gms_fast.run import Run
from gms_fast.schedules import Schedule
from gms_fast.solvers import Solver
from gms_fast.types import NoiseMoments

BATCHES, SHARDS = 8, 64  # of a shard at most, unless its size is given; that there are rather than larger ones


def generate(
    model: Callable[[Tensor, Tensor], Tensor | NoiseMoments],
    out: str | Path,
    *,
    n: int,
    batch_size: int | str = 64,
    steps: int = 10,
    solver: str | Solver = "gms",
    seed: int = 0,
    shape: Sequence[int] | None = None,
    schedule: Schedule | str | None = None,
    timesteps: Sequence[float] | None = None,
    prediction: str | None = None,
    clip: tuple[float, float] | str | None = UNSAID,
    denoise: bool | None = None,
    condition: Condition = None,
    decoder: Decoder | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    form: str = "npz",
    shard_size: int | None = None,
    shard: str = "1/1",
    features: str | Extractor | None = None,
    memory: int | None = None,
    verify: float | None = None,
    replace: bool = False,
    progress: bool = False,
) -> Report:
    """Draw n samples of `gms_fast.sample` into a folder of shards, or go on with a folder that has some of them.

    Sample i is that of `sample(.., seed=seed, sample_offset=i)`, in grey levels round(127.5 (x + 1)). Processes that
    call this with the same arguments share the work, by claims on shards in the folder: ranks of torchrun, jobs of a
    cluster, or several terminals. They may come, go and be killed; the folder gets the same bytes from any number of
    them on devices of one kind. The same call again goes on: shards that are there are checked, broken ones made anew.

    out         folder. `run.json` says what its pictures depend on; a call that differs is refused
    n           number of samples, 0 .. n - 1
    batch_size  samples that are drawn at a time. It changes no sample but by the network's rounding. Where memory runs
                out, the network sees half as many at a time. "auto": that at which this device draws fastest within
                `memory`; `run.json` keeps it
    condition   keywords for the network: tensors of n rows go with their samples, those of one row to each; or a
                callable (B,) indices -> keywords of B rows
    decoder     callable from samples to pictures (B, C, H, W) in [-1, 1], as of latents
    form        "npz": files FIRST-LAST.npz with `images` (N, C, H, W) uint8, `index` (N,) and `made`, a checksum and
                the fingerprint of the run; "png": folders FIRST-LAST of pictures; "none": no pictures
    shard_size  samples of a shard, a multiple of batch_size (default: up to 8 batches)
    shard       "K/N": the K-th of N equal shares alone, for jobs that have no folder in common
    features    a feature network (`gms_fast.quality.extractors.load`, or its text), statistics of which are kept in
                `measured.safetensors` for `quality.running.Running.load`; with form "none" nothing else is
    memory      bytes that batches may take, for "auto" (default: 0.8 of a GPU's that is free, half of the host's)
    verify      share of the samples, 0 .. 1, that are drawn again and compared; nothing is written
    replace     delete the run in the folder first, and no other file; by one process alone
    progress    whether to show a progress bar on stderr, of all processes together
    All other arguments are those of `sample`.

    On a CPU each process computes with one thread, because a network may round otherwise with more of them.
    Raises ValueError or TypeError naming the argument before anything is drawn, FileExistsError for a folder with files
    of others, OSError where the folder cannot be written, MemoryError where a single sample is too large.
    """
    if verify is not None and not (isinstance(verify, (int, float)) and 0 < verify <= 1):
        raise ValueError(f"verify must be a share of the samples, more than 0 and at most 1: got {verify}")
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}: got {form!r}")
    if replace and verify is not None:
        raise ValueError("replace must be False where verify is given")
    if replace and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("replace (--force) is for one process: under torchrun others go on with what one deletes")
    if memory is not None and batch_size != "auto":
        raise ValueError(f'memory must be None unless batch_size is "auto": got {memory}')
    if form == "none" and features is None:
        raise ValueError('form must not be "none" without features: nothing would be kept')
    n, share = _at_least_one("n", n), Share.of(shard)
    asked: dict[str, Any] = {
        "steps": steps,
        "schedule": schedule,
        "timesteps": timesteps,
        "prediction": prediction,
        "clip": clip,
        "denoise": denoise,
    }
    run = Run.prepare(model, solver=solver, **asked, condition=None, batch_size=None, callback=None)
    if decoder is None and (own := ranged(model, UNSAID)[0]) != PICTURES:
        raise ValueError(f"decoder must make pictures in [-1, 1] of this model's samples, whose range is {own}")
    if not callable(condition):
        check_condition(model, condition, n)
    place = _numbered(torch.device(device or device_of(model) or torch.get_default_device()))
    extractor = extractors.load(features) if isinstance(features, str) else features
    extractor = None if extractor is None else extractor.to(place)
    state = {"seed": integer("seed", seed), "shape": shape, "device": place, "dtype": dtype or torch.float32}
    arguments = {"model": model, "solver": run.solver, **asked, **state}

    def drawing_by(size: int) -> Drawing:
        return Drawing(arguments, run.said.clip, n, size, condition, decoder)

    def planned(size: int) -> Job:
        """The run with batches of this size."""
        cut, drawing = cut_of(n, size, shard_size), drawing_by(size)
        said = settings.of(run, drawing, cut.size, form)
        shards = FORMS[form](Path(out), cut, drawing.shape, settings.fingerprint(said))
        measured = None if extractor is None else Measured(Path(out), cut, shards.run, extractor)
        return Job(Path(out), said, share.parts(len(cut)), drawing, shards, measured)

    def fitted() -> dict[str, Any]:
        """Settings with the batch size that is fastest here."""
        with one_thread(place):
            return planned(fastest(lambda size: use(drawing_by(size).begin, place), limit, n, shard_size)).settings

    limit = free(place) if memory is None else _at_least_one("memory", memory)
    job = None if batch_size == "auto" else planned(_at_least_one("batch_size", batch_size))
    if job is not None and verify is None and settings.stored(Path(out)) is None:
        job.drawing.try_condition()
    if replace:
        clear(Path(out))
    make = fitted if job is None else job.settings.copy
    found = settings.settled(Path(out), make, new=verify is None, slow=job is None)
    job = job or planned(found["batch_size"])
    settings.check(Path(out), found, job.settings)
    return fill(job, progress=progress) if verify is None else compare(job, verify, progress=progress)


def _numbered(device: torch.device) -> torch.device:
    """The device by its number, which is the same one in every thread."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _at_least_one(name: str, value: object) -> int:
    """The value as a positive integer. Raises TypeError or ValueError naming the argument."""
    number = integer(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1: got {value}")
    return number


def cut_of(n: int, batch_size: int, shard_size: int | None) -> Cut:
    """The shards of a run, few batches each where there are few. Raises ValueError for sizes that do not fit."""
    batches = min(BATCHES, max(1, n // (SHARDS * batch_size)))
    size = batches * batch_size if shard_size is None else _at_least_one("shard_size", shard_size)
    if size % batch_size:
        raise ValueError(f"shard_size must be a multiple of batch_size = {batch_size}: got {shard_size}")
    return Cut(n, size)
