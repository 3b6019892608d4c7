"""Draw many samples into a folder, with the same bytes from any number of processes."""

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

BATCHES, SHARDS = 8, 64  # by default up to 8 batches in a shard, fewer if that makes less than 64 shards


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
    """Draw n samples into a folder of shards, alone or together with other processes.

    Image i is the sample that [`sample`][gms_fast.sample] draws with `seed=seed, sample_offset=i`, converted to grey
    levels round(127.5 (x + 1)). A shard is a file or folder with consecutive images.

    All processes that make the same call share the work, whether they are torchrun ranks, cluster jobs or separate
    terminals. Each process claims shards in the folder. Processes may start late, stop, or be killed at any time. On
    devices of the same kind, the files are the same byte for byte, no matter how many processes wrote them.

    To resume a run, repeat the call. The shards that are already in the folder are checked, and broken ones replaced.

    Args:
        model: Callable `(x, t)`, as in [`sample`][gms_fast.sample].
        out: Folder of the run. Its file `run.json` records every setting that affects the images, and a call with
            different settings is refused.
        n: Number of samples, >= 1, with indices 0 .. n - 1.
        batch_size: Number of samples drawn at a time. The batch size changes samples only by the network's rounding. If
            memory runs out, the number of samples in one network evaluation is halved. "auto" measures the fastest
            batch size on this device within `memory` and stores it in `run.json`.
        steps: See [`sample`][gms_fast.sample].
        solver: See [`sample`][gms_fast.sample].
        seed: Integer seed of the run.
        shape: See [`sample`][gms_fast.sample].
        schedule: See [`sample`][gms_fast.sample].
        timesteps: See [`sample`][gms_fast.sample].
        prediction: See [`sample`][gms_fast.sample].
        clip: See [`sample`][gms_fast.sample].
        denoise: See [`sample`][gms_fast.sample].
        condition: Keyword arguments for the model: a dict of tensors with n rows, one per sample, or with a single row
            for all samples. It may also be a callable that takes sample indices (B,) and returns such a dict with B
            rows.
        decoder: Callable that turns samples, for example latents, into images (B, C, H, W) in [-1, 1]. Required if the
            model's data range is not [-1, 1].
        device: Device of the state. Defaults to the model's device.
        dtype: Data type of the state. Defaults to float32.
        form: Storage format of a shard, whose name consists of its FIRST and LAST index. "npz" writes a file
            FIRST-LAST.npz with `images` (N, C, H, W) uint8, `index` (N,) and `made`, which holds a checksum and the
            fingerprint of the run. "png" writes a folder FIRST-LAST with one PNG file per image. "none" stores no
            images, only the statistics of `features`.
        shard_size: Number of samples per shard, a multiple of `batch_size`. Defaults to at most 8 batches.
        shard: Part of the run to draw, as "K/N": the K-th of N equal parts of the shards. Use this for jobs that do not
            share a folder. The default, "1/1", draws all shards.
        features: Feature network, or its name (see `gms_fast.quality.extractors.load`). Statistics of the images'
            features are stored in `measured.safetensors`, which `quality.running.Running.load` reads.
        memory: Number of bytes that batches may use if `batch_size` is "auto". Defaults to 0.8 of the free GPU memory,
            or half of the free host memory on a CPU.
        verify: Fraction of the samples, in (0, 1], to draw again and compare with the stored ones. With this option,
            nothing is written.
        replace: Whether to delete an existing run in the folder first. No other files are deleted. Allowed only for a
            single process.
        progress: Whether to show one progress bar for all processes together, on stderr.

    Returns:
        Report: a named tuple of counts. `drawn` is the number of samples drawn by this call, `there` the number of
            samples that the folder already had, and `broken` the number of broken shards found. With `verify`,
            `compared` is the number of samples compared, `differing` the fraction of their pixels that differ, and
            `largest` the largest difference in grey levels.

    Raises:
        ValueError: If an argument is out of range, which is checked before anything is drawn; if the folder holds
            a different run; or if `verify` finds a difference from images drawn on the same kind of device.
        TypeError: If an argument has the wrong type.
        FileExistsError: If the folder holds files that do not belong to the run.
        FileNotFoundError: If `verify` is given and the folder holds no run.
        OSError: If the folder cannot be written to.
        MemoryError: If there is not enough memory for a single sample.

    Note:
        On a CPU, each process uses one thread, because a network may round differently with more threads.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> report = gms_fast.generate(model, "digits", n=20, batch_size=8, steps=5)
        >>> report.drawn
        20
        >>> gms_fast.generate(model, "digits", n=20, batch_size=8, steps=5).there  # nothing left to draw
        20
        >>> gms_fast.generate(model, "digits", n=20, batch_size=8, steps=5, verify=0.5).largest
        0
    """
    if verify is not None and not (isinstance(verify, (int, float)) and 0 < verify <= 1):
        raise ValueError(f"verify must be a fraction of the samples in (0, 1]: got {verify}")
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}: got {form!r}")
    if replace and verify is not None:
        raise ValueError("replace must be False if verify is given: verify writes nothing")
    if replace and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("replace (--force) must not be given under torchrun: one rank would delete what others draw")
    if memory is not None and batch_size != "auto":
        raise ValueError(f'memory must be None unless batch_size is "auto": got {memory}')
    if form == "none" and features is None:
        raise ValueError('form must not be "none" without features: nothing would be stored')
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
        raise ValueError(f"decoder must be given for this model, because its samples have the range {own}, not [-1, 1]")
    if not callable(condition):
        check_condition(model, condition, n)
    place = _numbered(torch.device(device or device_of(model) or torch.get_default_device()))
    extractor = extractors.load(features) if isinstance(features, str) else features
    extractor = None if extractor is None else extractor.to(place)
    state = {"seed": integer("seed", seed), "shape": shape, "device": place, "dtype": dtype or torch.float32}
    arguments = {"model": model, "solver": run.solver, **asked, **state}

    def drawing_by(size: int) -> Drawing:
        """Return the drawing of the run with batches of this size."""
        return Drawing(arguments, run.said.clip, n, size, condition, decoder)

    def planned(size: int) -> Job:
        """Return the run with batches of this size."""
        cut, drawing = cut_of(n, size, shard_size), drawing_by(size)
        said = settings.of(run, drawing, cut.size, form)
        shards = FORMS[form](Path(out), cut, drawing.shape, settings.fingerprint(said))
        measured = None if extractor is None else Measured(Path(out), cut, shards.run, extractor)
        return Job(Path(out), said, share.parts(len(cut)), drawing, shards, measured)

    def fitted() -> dict[str, Any]:
        """Return the settings with the fastest batch size on this device."""
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
    """Return a CUDA device with its index, which is the same in every thread."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _at_least_one(name: str, value: object) -> int:
    """Convert a value to a positive integer. Raises TypeError or ValueError naming the argument."""
    number = integer(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1: got {value}")
    return number


def cut_of(n: int, batch_size: int, shard_size: int | None) -> Cut:
    """Cut a run into shards, small ones if there are few batches.

    Raises ValueError for sizes that do not fit.
    """
    batches = min(BATCHES, max(1, n // (SHARDS * batch_size)))
    size = batches * batch_size if shard_size is None else _at_least_one("shard_size", shard_size)
    if size % batch_size:
        raise ValueError(f"shard_size must be a multiple of batch_size = {batch_size}: got {shard_size}")
    return Cut(n, size)
