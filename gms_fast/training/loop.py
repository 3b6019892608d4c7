"""Two-stage training: a noise network, then heads for its higher moments on the frozen network.

Every random number of step k comes from a generator seeded by (seed, k) alone, so a run that was killed and
resumed walks through the same batches, times and noise as one that never stopped, and so do several processes that
share the rows of each batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gms_fast import interrupts
from gms_fast.models.moment_heads import MomentHeads, check_eval
from gms_fast.models.unet import MomentUNet
from gms_fast.schedules import Schedule
from gms_fast.storage import fingerprints
from gms_fast.storage.locks import locked_folder
from gms_fast.training import batches
from gms_fast.training.batches import Batches, Encoder, Loaded, Wanted, Whole
from gms_fast.training.losses import WEIGHTS, Loss, moment_loss, noise_loss
from gms_fast.training.noising import Noised, log_normal_times, noised, seed_of, sent, times
from gms_fast.training.ranks import Ranks, gathered, telling
from gms_fast.training.settings import BATCH_SIZE, Settings, Steering
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
    checkpoint_seconds: float | None = None,
    progress: bool = True,
    batch_size: int | None = None,
    micro_batch: int | None = None,
    compile: bool = False,
    lr: float = Settings.lr,
    warmup: int = Settings.warmup,
    decay: str = Settings.decay,
    ema: float = Settings.ema,
    clip_norm: float = Settings.clip_norm,
    flips: bool = Settings.flips,
    label_dropout: float = Settings.label_dropout,
    precision: str = Settings.precision,
    seed: int = Settings.seed,
    weights: str = "uniform",
) -> MomentUNet:
    """Stage 1: minimise E w (e1(x_t, t) - eps)^2 over random t; returns `model` with the averaged weights.

    model       a `MomentUNet` (its heads, if any, are left alone)
    data        images (N, C, H, W) in the model's range, or uint8, whose 0 .. 255 stand for it; for a network with
                classes (images, labels (N,) or {"y": labels}); or an iterable of such batches, as a DataLoader is. A
                tensor stays where it is: on a GPU batches are taken there. t is uniform in the times of a discrete
                schedule, else it lies as the schedule's own grid does
    steps       optimiser steps in all
    out         folder for `checkpoint.pt` and `curve.csv`; one that holds a run is continued if `resume`, else refused
    encoder     callable from images to what the model learns, as latents; images that are there as a whole are encoded
                once, others as they come
    checkpoint_every, checkpoint_seconds  steps, and seconds if given, after which there is a checkpoint again
    progress    whether to show a progress bar on stderr
    batch_size  images per step (64), of all ranks together; None for data that comes in batches
    micro_batch rows that go through the network at a time, on each rank; None: all. Fewer need less memory for the
                same result, to rounding, but for a dropout of the network, which draws for each part
    compile     whether torch.compile makes the network's step, for the same result, to rounding, but for a dropout of
                the network
    lr          peak learning rate of Adam, reached after `warmup` steps
    decay       "cosine" | "linear" (both to 0 at the last step) | "constant"
    ema         decay of the averaged weights (smaller in the first steps: (1+k)/(10+k))
    clip_norm   largest norm of the gradient
    flips       mirror each image with probability 1/2 (wrong for digits)
    label_dropout  probability that a picture is shown with the class that stands for none, for guidance; 0 for a
                network without classes
    precision   "float32" | "bfloat16": arithmetic of the network (weights and losses stay float32)
    seed        determines everything that is random; an iterable draws from torch's own generator to be included
    weights     w by level, in SNR = alpha^2/sigma^2: "uniform", 1; "min-snr", min(SNR, 5)/SNR (Hang et al. 2023);
                "edm", 1 + 4/SNR with log(sigma/alpha) ~ N(-1.2, 1.2^2) in place of t as above (Karras et al. 2022)
    On a GPU losses are read every 16 steps, and signals answered then; Adam is fused, and weights lie channels last
    where the network computes in 16 bits.
    Under torchrun, or in a process group, ranks share the rows of each batch: the result is that of one process, to
    rounding, but for a dropout of the network, and any number of ranks goes on from the checkpoint of any other.
    Raises ValueError for bad settings or data, a truncated checkpoint, or a folder made with another configuration;
    MemoryError where a GPU is too small for `micro_batch` rows; ConnectionError where another rank has ended.
    """
    if precision == "float16":
        raise ValueError('precision must be "float32" or "bfloat16" for weights that learn: got "float16"')
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}: got {weights!r}")
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
        label_dropout=label_dropout,
        precision=precision,
        seed=seed,
    )
    stage = {"stage": "noise", "unused": ("normalised",)} | ({} if weights == "uniform" else {"weights": weights})
    steering = Steering(out, resume, checkpoint_every, checkpoint_seconds, micro_batch, compile, progress)
    _train(model, parameters, data, encoder, noise_loss(weights), stage, run, steering)
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
    checkpoint_seconds: float | None = None,
    progress: bool = True,
    batch_size: int | None = None,
    micro_batch: int | None = None,
    compile: bool = False,
    lr: float = Settings.lr,
    warmup: int = Settings.warmup,
    decay: str = Settings.decay,
    ema: float = Settings.ema,
    clip_norm: float = Settings.clip_norm,
    flips: bool = Settings.flips,
    label_dropout: float = Settings.label_dropout,
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
        label_dropout=label_dropout,
        precision=precision,
        seed=seed,
    )
    if isinstance(model, MomentHeads):
        check_eval(model.bare)
    if model.normalised and target != "central":
        raise ValueError(f'target must be "central" for a model with normalised heads: got {target!r}')
    stage = {"stage": "heads", "target": target, "unused": ()}
    steering = Steering(out, resume, checkpoint_every, checkpoint_seconds, micro_batch, compile, progress)
    state = _train(model, parameters, data, encoder, moment_loss(target), stage, run, steering)
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
    steering: Steering,
) -> State:
    folder, device = Path(steering.out), next(iter(parameters.values())).device
    if run.flips and len(model.sample_shape) < 3:
        raise ValueError(f"flips must be False for samples {tuple(model.sample_shape)}, which are no pictures")
    if run.label_dropout and Wanted(model).none is None:
        raise ValueError(f"label_dropout must be 0 for a network without a class for none: got {run.label_dropout}")
    narrow = next((p.dtype for p in parameters.values() if p.dtype not in _LEARN), None)
    if narrow is not None:
        raise ValueError(f"model must have float32 weights where it learns: got {narrow}; see precision")
    source = _source(model, data, encoder, run)
    frozen = {n: p for n, p in model.named_parameters() if n not in parameters}
    configuration = {
        **{k: v for k, v in stage.items() if k != "unused"},
        **run.described,
        "model": {k: v for k, v in model.config.items() if k not in ("moments", *stage["unused"]) and v is not False},
        "schedule": model.schedule.described,
        "data": source.fingerprint,
        "frozen": fingerprints.of_tensors(frozen.values()) if stage["stage"] == "heads" else None,
    }
    ranks = gathered(device)
    _laid_out(model, run, device)
    held, narrowed = ranks.alone(lambda: locked_folder(folder)), _learning_alone(model, parameters)
    with held, telling(), torch.enable_grad(), narrowed:
        learning = ranks.learning(list(parameters.values()))
        state = State(parameters, run, folder / CHECKPOINT, configuration)
        if (stored := ranks.by_first(lambda: state.stored(steering.resume))) is not None:
            state.take(stored)
            ranks.by_first(state.write_curve)
        model.train(stage["stage"] == "noise")  # a frozen network keeps its dropout off
        drawn = log_normal_times if stage.get("weights") == "edm" else times
        loss_fn = torch.compile(loss_fn) if steering.compile else loss_fn
        _run(_Step(model, source, loss_fn, drawn, ranks, learning, steering, device), state, steering)
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
    size, raw = run.batch_size or BATCH_SIZE, None if encoder is None else images
    return Whole(seen, condition, size, wanted.floating, raw)


def _laid_out(model: Model, run: Settings, device: torch.device) -> None:
    """Have the weights of a U-Net lie as tensor cores take them. On a CPU backward passes of some norms would fail."""
    if device.type == "cuda" and run.precision != "float32" and isinstance(model, MomentUNet):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class _Step:
    """One step of training on this rank's rows.

    Call with the state -> (3,) on the device: the loss of all rows, how many ranks are to stop, and whether seconds ask
    for a checkpoint.
    """

    def __init__(
        self,
        model: Model,
        source: Batches,
        loss_fn: Loss,
        drawn: Callable[[Schedule, int, torch.Generator], Tensor],
        ranks: Ranks,
        learning: Callable[[Sequence[Callable[[], Tensor]]], Tensor],
        steering: Steering,
        device: torch.device,
    ) -> None:
        self.model, self.source, self.loss_fn, self.drawn = model, source, loss_fn, drawn
        self.ranks, self.learning, self.steering, self.device = ranks, learning, steering, device
        self.wanted = Wanted(model)

    def __call__(self, state: State, signals: interrupts.PutOff) -> Tensor:
        run, device, seed = state.run, self.device, seed_of(state.run.seed, state.step)
        generator = torch.Generator().manual_seed(seed)
        total, some = self.source.at(state.step, generator)
        rows = self.ranks.rows(total)
        x_0, condition = some(rows)
        if run.flips:
            flipped = torch.rand(total, *[1] * (x_0.ndim - 1), generator=generator)[rows] < 0.5
            x_0 = torch.where(sent(flipped, x_0.device), x_0, x_0.flip(-1))
        if run.label_dropout:
            condition = self.wanted.dropped(condition, torch.rand(total, generator=generator)[rows] < run.label_dropout)
        batch = noised(self.model.schedule, x_0, condition, rows, total, generator, device, self.drawn)
        loss = state.update(lambda: self._learnt(batch, total, seed, getattr(torch, run.precision)))
        late = self.ranks.first and state.unsaved > (self.steering.checkpoint_seconds or float("inf"))
        told = sent(torch.tensor([float(signals.come), float(late)]), device).to(loss.dtype)
        return self.ranks.total(torch.cat([loss[None] / self.ranks.count, told]))

    def _learnt(self, batch: Noised, total: int, seed: int, dtype: torch.dtype) -> Tensor:
        """The loss of this rank's rows out of `total`, a term of the mean over ranks, when its gradients are made."""
        parts = batch.split(self.steering.micro_batch)
        try:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(seed_of(seed, self.ranks.rank) if self.ranks.rank else seed)  # dropout
                return self.learning([partial(self._share, part, total, dtype) for part in parts])
        except torch.OutOfMemoryError as error:
            rows = len(parts[0].x_0)
            small = f"micro_batch must be less than {rows}" if rows > 1 else "the network must be smaller"
            raise MemoryError(f"{small}: {rows} rows at a time are more than {self.device} has memory for") from error

    def _share(self, part: Noised, total: int, dtype: torch.dtype) -> Tensor:
        return len(part.x_0) * self.ranks.count / total * self.loss_fn(self.model, part, dtype)


def _read_after(device: torch.device) -> int:
    """Steps after which losses and signals are read, for which a GPU is waited for."""
    return 16 if device.type == "cuda" else 1


def _run(step: _Step, state: State, steering: Steering) -> None:
    """Take all steps, and have a checkpoint every so many, at the end, and where a signal ends them before."""
    total, stage, shown = state.run.steps, state.configuration["stage"], steering.progress and step.ranks.first
    bar = tqdm(total=total, initial=state.step, disable=not shown, desc=stage, unit="step")
    every, unread = _read_after(step.device), list[Tensor]()
    with bar, interrupts.put_off() as check:
        while state.step < total:
            unread.append(step(state, check))
            due = state.step % steering.checkpoint_every == 0 or state.step == total
            if not due and len(unread) < every:
                continue
            told, unread = torch.stack(unread).tolist(), []
            for number, (loss, *_) in enumerate(told, state.step - len(told) + 1):
                state.record(loss, number)
            bar.set_postfix(loss=f"{state.smooth:.4f}", refresh=False)
            bar.update(len(told))
            stop, late = (any(row[i] > 0 for row in told) for i in (1, 2))
            if stop or late or due:
                step.ranks.by_first(state.save)  # a full disk ends all
            if stop:
                check()
                raise KeyboardInterrupt  # a signal to another rank
