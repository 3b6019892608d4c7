"""Two-stage training: a noise network, then heads for its higher moments on the frozen network.

Every random number of step k comes from a generator seeded by (seed, k) alone, so a run that was killed and
resumed walks through the same batches, times and noise as one that never stopped.
"""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gms_fast import interrupts
from gms_fast.models.unet import MomentUNet
from gms_fast.schedules import VP
from gms_fast.storage import atomic, checkpoint, fingerprints
from gms_fast.storage.configuration import check_same
from gms_fast.storage.locks import locked_folder
from gms_fast.storage.schema import Integer, Listed, Real
from gms_fast.training.losses import Loss, moment_loss, noise_loss
from gms_fast.training.rates import averaging, learning_rate

CHECKPOINT, CURVE = "checkpoint.pt", "curve.csv"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a training run depends on beside the model and the data: arguments of `train_noise_network`."""

    steps: int
    batch_size: int = 64
    lr: float = 2e-4
    warmup: int = 200
    decay: str = "cosine"
    ema: float = 0.999
    clip_norm: float = 1.0
    flips: bool = False
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive: got {self.lr}")
        if self.decay not in ("cosine", "linear", "constant"):
            raise ValueError(f'decay must be "cosine", "linear" or "constant": got {self.decay!r}')
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f'precision must be "float32" or "bfloat16": got {self.precision!r}')
        if self.warmup < 0:
            raise ValueError(f"warmup must not be negative: got {self.warmup}")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive: got {self.clip_norm}")
        if not 0 <= self.seed < 1 << 31:
            raise ValueError(f"seed must lie in [0, 2^31): got {self.seed}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1): got {self.ema}")

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0 .. steps-1."""
        return learning_rate(self.lr, step, self.steps, self.warmup, self.decay)


def train_noise_network(
    model: MomentUNet,
    data: Tensor,
    *,
    steps: int,
    out: str | Path,
    resume: bool = True,
    checkpoint_every: int = 500,
    progress: bool = True,
    batch_size: int = Settings.batch_size,
    lr: float = Settings.lr,
    warmup: int = Settings.warmup,
    decay: str = Settings.decay,
    ema: float = Settings.ema,
    clip_norm: float = Settings.clip_norm,
    flips: bool = Settings.flips,
    precision: str = Settings.precision,
    seed: int = Settings.seed,
) -> MomentUNet:
    """Stage 1: minimise E (e1(x_t, t) - eps)^2 over uniform t; returns `model` with the averaged weights.

    model       a `MomentUNet` (its heads, if any, are left alone) with a discrete schedule
    data        (N, C, H, W) in [-1, 1]
    steps       optimiser steps in all
    out         folder for `checkpoint.pt` and `curve.csv`; one that holds a run is continued if `resume`, else refused
    checkpoint_every  steps between two checkpoints
    progress    whether to show a progress bar on stderr
    batch_size  images per step
    lr          peak learning rate of Adam, reached after `warmup` steps
    decay       "cosine" | "linear" (both to 0 at the last step) | "constant"
    ema         decay of the averaged weights (smaller in the first steps: (1+k)/(10+k))
    clip_norm   largest norm of the gradient
    flips       mirror each image with probability 1/2 (wrong for digits)
    precision   "float32" | "bfloat16": arithmetic of the network (weights and losses stay float32)
    seed        determines everything that is random
    Raises ValueError for bad settings, a truncated checkpoint, or a folder made with another configuration.
    """
    parameters = {n: p for n, p in model.named_parameters() if not n.startswith(("out2", "out3"))}
    run = Settings(
        steps=steps,
        batch_size=batch_size,
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
    return _train(model, parameters, data, noise_loss, stage, run, out, resume, checkpoint_every, progress)


def train_moment_heads(
    model: MomentUNet,
    data: Tensor,
    *,
    steps: int,
    out: str | Path,
    target: str = "raw",
    resume: bool = True,
    checkpoint_every: int = 500,
    progress: bool = True,
    batch_size: int = Settings.batch_size,
    lr: float = Settings.lr,
    warmup: int = Settings.warmup,
    decay: str = Settings.decay,
    ema: float = Settings.ema,
    clip_norm: float = Settings.clip_norm,
    flips: bool = Settings.flips,
    precision: str = Settings.precision,
    seed: int = Settings.seed,
) -> MomentUNet:
    """Stage 2: heads for E[eps^2], E[eps^3] ("raw") or E[(eps-e1)^k] ("central") on the frozen noise network.

    Arguments as for `train_noise_network`; `model` must have heads, or that of the second moment alone. Sets
    `model.moments` to `target`.
    """
    if target not in ("raw", "central"):
        raise ValueError(f'target must be "raw" or "central": got {target!r}')
    parameters = {n: p for n, p in model.named_parameters() if n.startswith(("out2", "out3"))}
    if not parameters:
        raise ValueError('model has no moment heads: make it with head="simple" or "complex"')
    run = Settings(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup=warmup,
        decay=decay,
        ema=ema,
        clip_norm=clip_norm,
        flips=flips,
        precision=precision,
        seed=seed,
    )
    if model.normalised and target != "central":
        raise ValueError(f'target must be "central" for a model with normalised heads: got {target!r}')
    stage = {"stage": "heads", "target": target, "unused": ()}
    _train(model, parameters, data, moment_loss(target), stage, run, out, resume, checkpoint_every, progress)
    model.moments = model.config["moments"] = target
    return model


def _train(
    model: MomentUNet,
    parameters: dict[str, nn.Parameter],
    data: Tensor,
    loss_fn: Loss,
    stage: dict[str, Any],
    run: Settings,
    out: str | Path,
    resume: bool,
    checkpoint_every: int,
    progress: bool,
) -> MomentUNet:
    _check(model, data)
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1: got {checkpoint_every}")
    folder = Path(out)
    frozen = {n: p for n, p in model.named_parameters() if n not in parameters}
    configuration = {
        **{k: v for k, v in stage.items() if k != "unused"},
        **asdict(run),
        "model": {k: v for k, v in model.config.items() if k not in ("moments", *stage["unused"]) and v is not False},
        "schedule": model.schedule.config,
        "data": fingerprints.of_tensors([data]),
        "frozen": fingerprints.of_tensors(frozen.values()) if stage["stage"] == "heads" else None,
    }
    with locked_folder(folder):
        state = _State(parameters, run, folder / CHECKPOINT, configuration)
        state.open(resume)
        for p in frozen.values():
            p.requires_grad_(False)
        try:
            model.train(stage["stage"] == "noise")  # a frozen network keeps its dropout off
            _run(model, data, loss_fn, state, checkpoint_every, progress)
        finally:
            for p in frozen.values():
                p.requires_grad_(True)
    state.load_average()
    return model.eval()


def _run(model: MomentUNet, data: Tensor, loss_fn: Loss, state: "_State", every: int, progress: bool) -> None:
    """Take all steps, and have a checkpoint every so many, at the end, and where a signal ends them before."""
    total, stage = state.run.steps, state.configuration["stage"]
    bar = tqdm(total=total, initial=state.step, disable=not progress, desc=stage, unit="step")
    with bar, interrupts.put_off() as check:
        while state.step < total:
            state.record(_step(model, data, loss_fn, state, state.run))
            bar.set_postfix(loss=f"{state.smooth:.4f}", refresh=False)
            bar.update()
            if state.step % every == 0 or state.step == total:
                state.save()
            check(state.save)


def _step(model: MomentUNet, data: Tensor, loss_fn: Loss, state: "_State", run: Settings) -> float:
    device, schedule = next(model.parameters()).device, _schedule_of(model)
    generator = torch.Generator().manual_seed(_seed_of(run.seed, state.step))
    x_0 = data[torch.randint(len(data), (run.batch_size,), generator=generator)]
    if run.flips:
        x_0 = torch.where(torch.rand(run.batch_size, 1, 1, 1, generator=generator) < 0.5, x_0, x_0.flip(-1))
    t = torch.randint(schedule.T, (run.batch_size,), generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    alpha, sigma = (f(t).float().view(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
    x_t, times, eps = (y.to(device) for y in (alpha * x_0 + sigma * eps, schedule.network_time(t).float(), eps))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_seed_of(run.seed, state.step))  # dropout
        with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bfloat16"):
            loss = loss_fn(model, x_t, times, eps)
    state.update(loss)
    return loss.item()


def _seed_of(seed: int, step: int) -> int:
    """32 bits of (seed, step), since torch's CPU generator takes no more."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


class _State:
    """Weights being trained, their running average, the optimiser and the loss curve, in memory and in a file."""

    def __init__(
        self, parameters: dict[str, nn.Parameter], run: Settings, path: Path, configuration: dict[str, Any]
    ) -> None:
        self.run, self.parameters, self.path, self.configuration = run, parameters, path, configuration
        self.average = {n: p.detach().clone() for n, p in parameters.items()}
        self.optimiser = torch.optim.Adam(parameters.values(), lr=run.lr)
        self.step, self.smooth, self.seconds = 0, float("nan"), 0.0
        self.curve: list[list[float]] = []
        self._since = time.perf_counter()

    def update(self, loss: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), self.run.clip_norm)
        self.optimiser.param_groups[0]["lr"] = self.run.lr_at(self.step)
        self.optimiser.step()
        decay = averaging(self.run.ema, self.step)
        with torch.no_grad():
            torch._foreach_lerp_([*self.average.values()], [*self.parameters.values()], 1 - decay)
        self.step += 1

    def record(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"training diverged: loss is {loss} at step {self.step}; start again with a lower lr"
            )
        self.smooth = loss if math.isnan(self.smooth) else 0.99 * self.smooth + 0.01 * loss
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        if self.step % 50 == 0 or self.step == self.run.steps:
            self.curve.append([self.step, round(self.smooth, 6), round(self.seconds, 1)])

    def save(self) -> None:
        state = {
            "configuration": self.configuration,
            "step": self.step,
            "smooth": self.smooth,
            "seconds": self.seconds,
            "curve": self.curve,
            "weights": {n: p.detach() for n, p in self.parameters.items()},
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }
        checkpoint.write(self.path, state)
        atomic.write_rows(self.path.with_name(CURVE), [["step", "loss", "seconds"], *self.curve])

    def open(self, resume: bool) -> None:
        """Go on from the file, if it is there."""
        if not self.path.exists():
            return
        folder = self.path.parent
        if not resume:
            raise FileExistsError(f"out: {folder} already holds a training run; resume it or choose another folder")
        state = checkpoint.read(self.path)
        message = f"{folder} was made with another configuration; choose another folder"
        check_same(state["configuration"], self.configuration, message)
        tensors = checkpoint.Like.of(self.parameters)
        wants = {
            "step": Integer(0, self.run.steps),
            "smooth": Real(nan=True),
            "seconds": Real(0),
            "curve": Listed(Listed(Real(), 3, 3), self.run.steps + 1),
            "weights": tensors,
            "average": tensors,
        }
        checkpoint.check(self.path, state, wants, self.optimiser)
        self.step, self.smooth, self.seconds = state["step"], state["smooth"], state["seconds"]
        self.curve = state["curve"]
        self._copy(state["weights"], self.parameters)
        self._copy(state["average"], self.average)
        self.optimiser.load_state_dict(state["optimiser"])

    def load_average(self) -> None:
        self._copy(self.average, self.parameters)

    @staticmethod
    def _copy(source: dict[str, Tensor], target: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, value in source.items():
                target[name].copy_(value)


def _schedule_of(model: MomentUNet) -> VP:
    if not isinstance(model.schedule, VP):
        raise ValueError(f"model must have a discrete schedule to be trained, as VPLinear(): got {model.schedule!r}")
    return model.schedule


def _check(model: MomentUNet, data: Tensor) -> None:
    _schedule_of(model)
    shape = model.sample_shape
    if data.ndim != 4 or tuple(data.shape[1:]) != shape or len(data) == 0:
        raise ValueError(f"data must be (N, {', '.join(map(str, shape))}) for this model: got {tuple(data.shape)}")
    if not torch.isfinite(data).all() or data.abs().max() > 1:
        raise ValueError("data must be finite and lie in [-1, 1]")
