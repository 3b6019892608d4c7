"""Many samples into a folder: the same bytes from one process or many, that come, go and are killed as they like."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gms_fast.assumptions import PICTURES, UNSAID, ranged
from gms_fast.generation import settings
from gms_fast.generation.drawing import Condition, Decoder, Drawing
from gms_fast.generation.job import Job, Report, Share
from gms_fast.generation.shards import FORMS, Cut
from gms_fast.network import device_of
from gms_fast.plan import integer
from gms_fast.run import Run
from gms_fast.schedules import Schedule
from gms_fast.solvers import Solver
from gms_fast.types import NoiseMoments

BATCHES = 8  # of a shard, unless its size is given


def generate(
    model: Callable[[Tensor, Tensor], Tensor | NoiseMoments],
    out: str | Path,
    *,
    n: int,
    batch_size: int = 64,
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
    verify: float | None = None,
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
                out, the network sees half as many at a time
    condition   keywords for the network: tensors of n rows go with their samples, all else goes to each; or a callable
                (B,) indices -> keywords of B rows
    decoder     callable from samples to pictures (B, C, H, W) in [-1, 1], as of latents
    form        "npz": files FIRST-LAST.npz with `images` (N, C, H, W) uint8, `index` (N,) and `made`, a checksum and
                the fingerprint of the run; "png": folders FIRST-LAST of pictures
    shard_size  samples of a shard, a multiple of batch_size (default: 8 batches)
    shard       "K/N": the K-th of N equal shares alone, for jobs that have no folder in common
    verify      share of the samples, 0 .. 1, that are drawn again and compared; nothing is written
    progress    whether to show a progress bar on stderr, of all processes together
    All other arguments are those of `sample`.

    On a CPU each process computes with one thread, because a network may round otherwise with more of them.
    Raises ValueError or TypeError naming the argument before anything is drawn, FileExistsError for a folder with files
    of others, OSError where the folder cannot be written, MemoryError where a single sample is too large.
    """
    if verify is not None and not 0 < verify <= 1:
        raise ValueError(f"verify must be a share of the samples, more than 0 and at most 1: got {verify}")
    cut, share = _cut(n, batch_size, shard_size), Share.of(shard)
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}: got {form!r}")
    asked: dict[str, Any] = {
        "steps": steps,
        "schedule": schedule,
        "timesteps": timesteps,
        "prediction": prediction,
        "clip": clip,
        "denoise": denoise,
    }
    run = Run.prepare(model, solver=solver, **asked, condition=None, batch_size=None, callback=None)
    if decoder is None and (found := ranged(model, UNSAID)[0]) != PICTURES:
        raise ValueError(f"decoder must make pictures in [-1, 1] of this model's samples, whose range is {found}")
    device = torch.device(device or device_of(model) or torch.get_default_device())
    state = {"seed": integer("seed", seed), "shape": shape, "device": device, "dtype": dtype or torch.float32}
    arguments = {"model": model, "solver": run.solver, **asked, **state}
    drawing, parts = Drawing(arguments, n, batch_size, condition, decoder), share.parts(len(cut))
    said = settings.of(run, drawing, cut.size, form)
    settings.settle(Path(out), said, make=verify is None)
    shards = FORMS[form](Path(out), cut, drawing.shape, settings.fingerprint(said))
    job = Job(Path(out), cut, parts, drawing, shards, device)
    return job.fill(progress=progress) if verify is None else job.compare(verify, progress=progress)


def _cut(n: int, batch_size: int, shard_size: int | None) -> Cut:
    """The shards of a run. Raises ValueError for numbers that do not fit."""
    for name, value in (("n", n), ("batch_size", batch_size)):
        if integer(name, value) < 1:
            raise ValueError(f"{name} must be at least 1: got {value}")
    shard_size = BATCHES * batch_size if shard_size is None else integer("shard_size", shard_size)
    if shard_size < 1 or shard_size % batch_size:
        raise ValueError(f"shard_size must be a multiple of batch_size = {batch_size}: got {shard_size}")
    return Cut(n, shard_size)
