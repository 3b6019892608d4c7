"""Two-stage training: a noise network, then heads for its higher moments on the frozen network.

Every random number of step k comes from a generator seeded by (seed, k) alone, so a run that was killed and
resumed walks through the same batches, times and noise as one that never stopped, and so do several processes that
share the rows of each batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gms_fast import interrupts
from gms_fast.models.moment_heads import MomentHeads, check_eval
from gms_fast.models.unet import MomentUNet
from gms_fast.storage import fingerprints
from gms_fast.storage.locks import locked_folder
from gms_fast.training import batches
from gms_fast.training.batches import Batches, Encoder, Loaded, Wanted, Whole
from gms_fast.training.losses import Loss, moment_loss, noise_loss
from gms_fast.training.noising import noised, seed_of
from gms_fast.training.ranks import Ranks, gathered
from gms_fast.training.settings import BATCH_SIZE, Settings
from gms_fast.training.state import CHECKPOINT, State

Data = Tensor | tuple[Tensor, Any] | Iterable[Any]
Model = MomentUNet | MomentHeads
_LEARN = (torch.float32, torch.float64)  # dtypes in which small steps are not lost


def train_noise_network(
    model: MomentUNet,
    data: Data,
    *,
    steps: int,
    out: str | Path,
    encoder: Encoder | None = None,
    resume: bool = True,
    checkpoint_every: int = 500,
    progress: bool = True,
    batch_size: int | None = None,
    lr: float = Settings.lr,
    warmup: int = Settings.warmup,
    decay: str = Settings.decay,
    ema: float = Settings.ema,
    clip_norm: float = Settings.clip_norm,
    flips: bool = Settings.flips,
    precision: str = Settings.precision,
    seed: int = Settings.seed,
) -> MomentUNet:
    """Stage 1: minimise E (e1(x_t, t) - eps)^2 over random t; returns `model` with the averaged weights.

    model       a `MomentUNet` (its heads, if any, are left alone)
    data        images (N, C, H, W) in the model's range, or an iterable of such batches, as a DataLoader is. t is
                uniform in the times of a discrete schedule, else it lies as the schedule's own grid does
    steps       optimiser steps in all
    out         folder for `checkpoint.pt` and `curve.csv`; one that holds a run is continued if `resume`, else refused
    encoder     callable from images to what the model learns, as latents; images that are there as a whole are encoded
                once, others as they come
    checkpoint_every  steps between two checkpoints
    progress    whether to show a progress bar on stderr
    batch_size  images per step (64), of all ranks together; None for data that comes in batches
    lr          peak learning rate of Adam, reached after `warmup` steps
    decay       "cosine" | "linear" (both to 0 at the last step) | "constant"
    ema         decay of the averaged weights (smaller in the first steps: (1+k)/(10+k))
    clip_norm   largest norm of the gradient
    flips       mirror each image with probability 1/2 (wrong for digits)
    precision   "float32" | "bfloat16": arithmetic of the network (weights and losses stay float32)
    seed        determines everything that is random; an iterable draws from torch's own generator to be included
    Under torchrun, or in a process group, ranks share the rows of each batch: the result is that of one process, to
    rounding, but for a dropout of the network, and any number of ranks goes on from the checkpoint of any other.
    Raises ValueError for bad settings or data, a truncated checkpoint, or a folder made with another configuration.
    """
    if precision == "float16":
        raise ValueError('precision must be "float32" or "bfloat16" for weights that learn: got "float16"')
    parameters = {n: p for n, p in model.named_parameters() if not n.startswith(("out2", "out3"))}
    run = Settings(
        steps=steps,
        batch_size=_rows(batch_size, data),
        lr=lr,
        warmup=warmup,
        decay=decay,
        ema=ema,
        clip_norm=clip_norm,
        flips=flips,
        precision=precision,
        seed=seed,
    )
    stage = {"stage": "noise", "unused": ("normalised",)}
    _train(model, parameters, data, encoder, noise_loss, stage, run, out, resume, checkpoint_every, progress)
    return model


def train_moment_heads(
    model: Model,
    data: Data,
    *,
    steps: int,
    out: str | Path,
    target: str | None = None,
    encoder: Encoder | None = None,
    resume: bool = True,
    checkpoint_every: int = 500,
    progress: bool = True,
    batch_size: int | None = None,
    lr: float = Settings.lr,
    warmup: int = Settings.warmup,
    decay: str = Settings.decay,
    ema: float = Settings.ema,
    clip_norm: float = Settings.clip_norm,
    flips: bool = Settings.flips,
    precision: str = Settings.precision,
    seed: int = Settings.seed,
) -> Model:
    """Stage 2: heads for E[eps^2], E[eps^3] ("raw") or E[(eps-e1)^k] ("central") on the frozen noise network.

    Arguments as for `train_noise_network`, but for:

    model      a `MomentHeads`, or a `MomentUNet` that has heads, or that of the second moment alone
    data       also (images, condition), or an iterable of such pairs, for a network with conditions: keywords of
               tensors with a row for each image, or the tensor of the only one that the network asks for
    target     None: as the model says; `model.moments` becomes it
    precision  also "float16": heads compute in float32 in any case
    The network is called without its dropout, and keeps its weights to the bit.
    """
    target = model.moments if target is None else target
    if target not in ("raw", "central"):
        raise ValueError(f'target must be "raw" or "central": got {target!r}')
    parameters = model.head_parameters()
    if not parameters:
        raise ValueError('model has no moment heads: make it with head="simple" or "complex"')
    run = Settings(
        steps=steps,
        batch_size=_rows(batch_size, data),
        lr=lr,
        warmup=warmup,
        decay=decay,
        ema=ema,
        clip_norm=clip_norm,
        flips=flips,
        precision=precision,
        seed=seed,
    )
    if isinstance(model, MomentHeads):
        check_eval(model.bare)
    if model.normalised and target != "central":
        raise ValueError(f'target must be "central" for a model with normalised heads: got {target!r}')
    stage = {"stage": "heads", "target": target, "unused": ()}
    loss = moment_loss(target)
    state = _train(model, parameters, data, encoder, loss, stage, run, out, resume, checkpoint_every, progress)
    model.moments = target
    if isinstance(model, MomentHeads):
        model.record = {**asdict(run), "data": state.configuration["data"], "loss": state.smooth}
    else:
        model.config["moments"] = target
    return model


def _rows(batch_size: int | None, data: Data) -> int | None:
    """Rows of a batch. Raises ValueError where data comes in batches and has rows of its own."""
    if batches.whole(data) is not None:
        return BATCH_SIZE if batch_size is None else batch_size
    if batch_size is not None:
        raise ValueError(f"batch_size must be None for data that comes in batches: got {batch_size}")
    return None


def _train(
    model: Model,
    parameters: dict[str, nn.Parameter],
    data: Data,
    encoder: Encoder | None,
    loss_fn: Loss,
    stage: dict[str, Any],
    run: Settings,
    out: str | Path,
    resume: bool,
    checkpoint_every: int,
    progress: bool,
) -> State:
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1: got {checkpoint_every}")
    folder, device = Path(out), next(iter(parameters.values())).device
    if run.flips and len(model.sample_shape) < 3:
        raise ValueError(f"flips must be False for samples {tuple(model.sample_shape)}, which are no pictures")
    narrow = next((p.dtype for p in parameters.values() if p.dtype not in _LEARN), None)
    if narrow is not None:
        raise ValueError(f"model must have float32 weights where it learns: got {narrow}; see precision")
    source = _source(model, data, encoder, run)
    frozen = {n: p for n, p in model.named_parameters() if n not in parameters}
    configuration = {
        **{k: v for k, v in stage.items() if k != "unused"},
        **asdict(run),
        "model": {k: v for k, v in model.config.items() if k not in ("moments", *stage["unused"]) and v is not False},
        "schedule": model.schedule.described,
        "data": source.fingerprint,
        "frozen": fingerprints.of_tensors(frozen.values()) if stage["stage"] == "heads" else None,
    }
    ranks = gathered(device)
    with ranks.alone(lambda: locked_folder(folder)), torch.enable_grad(), _learning_alone(model, parameters):
        learning = ranks.learning(list(parameters.values()))
        state = State(parameters, run, folder / CHECKPOINT, configuration)
        if (stored := ranks.by_first(lambda: state.stored(resume))) is not None:
            state.take(stored)
        model.train(stage["stage"] == "noise")  # a frozen network keeps its dropout off
        _run(_Step(model, source, loss_fn, ranks, learning, device), state, checkpoint_every, progress)
    state.load_average()
    model.eval()
    return state


@contextmanager
def _learning_alone(model: Model, parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """In the block, gradients are of these parameters, and of no other."""
    learning = {id(p) for p in parameters.values()}
    was = {p: p.requires_grad for p in model.parameters()}
    try:
        for p in was:
            p.requires_grad_(id(p) in learning)
        yield
    finally:
        for p, flag in was.items():
            p.requires_grad_(flag)


def _source(model: Model, data: Data, encoder: Encoder | None, run: Settings) -> Batches:
    """The data by steps. Raises ValueError where it is not what the model wants."""
    wanted, given = Wanted(model), batches.whole(data)
    if given is None:
        if not isinstance(data, Iterable) or isinstance(data, (str, Mapping)):
            raise TypeError(f"data must be a tensor or an iterable of batches: got {type(data).__name__}")
        return Loaded(data, wanted, encoder, run.seed)
    images, condition = given[0], wanted.condition(given[1], len(given[0]))
    seen = wanted.images(images if encoder is None else batches.encoded(images, encoder, run.seed))
    wanted.scale(seen)
    return Whole(seen, condition, run.batch_size or BATCH_SIZE, raw=None if encoder is None else images)


class _Step:
    """One step of training on this rank's rows: call with the state; the loss of all rows, and whether to stop."""

    def __init__(
        self,
        model: Model,
        source: Batches,
        loss_fn: Loss,
        ranks: Ranks,
        learning: Callable[[Callable[[], Tensor]], Tensor],
        device: torch.device,
    ) -> None:
        self.model, self.source, self.loss_fn = model, source, loss_fn
        self.ranks, self.learning, self.device = ranks, learning, device

    def __call__(self, state: State, signals: interrupts.PutOff) -> tuple[float, bool]:
        run, device, seed = state.run, self.device, seed_of(state.run.seed, state.step)
        generator = torch.Generator().manual_seed(seed)
        total, some = self.source.at(state.step, generator)
        rows = self.ranks.rows(total)
        x_0, condition = some(rows)
        if run.flips:
            flipped = torch.rand(total, *[1] * (x_0.ndim - 1), generator=generator)[rows] < 0.5
            x_0 = torch.where(flipped, x_0, x_0.flip(-1))
        batch = noised(self.model.schedule, x_0, condition, rows, total, generator, device)
        share = len(x_0) * self.ranks.count / total  # of the mean over ranks
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed_of(seed, self.ranks.rank) if self.ranks.rank else seed)  # dropout
            loss = self.learning(lambda: share * self.loss_fn(self.model, batch, getattr(torch, run.precision)))
        state.update(loss)
        told = self.ranks.total(torch.stack([loss.detach() / self.ranks.count, loss.new_tensor(float(signals.come))]))
        return float(told[0]), bool(told[1] > 0)


def _run(step: _Step, state: State, every: int, progress: bool) -> None:
    """Take all steps, and have a checkpoint every so many, at the end, and where a signal ends them before."""
    total, stage, first = state.run.steps, state.configuration["stage"], step.ranks.first
    save = state.save if first else lambda: None
    bar = tqdm(total=total, initial=state.step, disable=not (progress and first), desc=stage, unit="step")
    with bar, interrupts.put_off() as check:
        while state.step < total:
            loss, stop = step(state, check)
            state.record(loss)
            bar.set_postfix(loss=f"{state.smooth:.4f}", refresh=False)
            bar.update()
            if stop or state.step % every == 0 or state.step == total:
                save()
            if stop:
                check()
                raise KeyboardInterrupt  # a signal to another rank
