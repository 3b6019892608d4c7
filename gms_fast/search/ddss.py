"""DDSS, differentiable diffusion sampler search: Watson et al., ICLR 2022 (arXiv 2202.05830).

Every random number of iteration k is a counter-based draw of the samples k n .. (k+1) n - 1, so a search that was
stopped and resumed walks through the same batches as one that never was.
"""

import csv
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gms_fast import network, ops, schedules, solvers
from gms_fast.configuration import check_same
from gms_fast.ops.checks import check_choice
from gms_fast.schedules import Schedule
from gms_fast.search.distance import KERNELS, KernelDistance
from gms_fast.search.features import Features, check_features, pixels
from gms_fast.search.parameters import VARIANTS, Parameters
from gms_fast.search.unroll import Sampler
from gms_fast.solvers import GGDMTable, Solver
from gms_fast.statistics import fingerprint
from gms_fast.training import checkpoint
from gms_fast.types import NoiseMoments, as_range

TABLE, CHECKPOINT, CURVE = "table.safetensors", "checkpoint.pt", "curve.csv"
FORMAT = "gms_fast search checkpoint 1"
FIELDS = {"configuration", "iteration", "parameters", "average", "optimiser", "best", "curve"}
HELD_OUT = 1 << 40  # index of the first of the samples that the score is taken of


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a search depends on beside the network, the data and the first table.

    variant       what is free (`gms_fast.search.parameters`): "ggdm", "pred", "time" or "constrained"
    stochastic    whether sigma[t] is learned too; else the sampler stays without noise, if it is
    kernel        of the distance: "cubic" or "linear"
    iterations    steps of Adam at most
    batch_size    samples of a step
    lr            peak learning rate, reached after `warmup` iterations; it falls to 0 as a cosine
    ema           decay of the averaged table (smaller in the first iterations: (1+k)/(10+k))
    clip_norm     largest norm of the gradient
    held_out      share of the data that the score is taken against; the loss sees the rest
    score_samples, score_every  samples of the score, the same ones every so many iterations
    patience      scores in a row without a new best one that end the search
    seed          determines everything that is random
    """

    variant: str = "pred"
    stochastic: bool = False
    kernel: str = "cubic"
    iterations: int = 1000
    batch_size: int = 64
    lr: float = 5e-3
    warmup: int = 20
    ema: float = 0.98
    clip_norm: float = 1.0
    held_out: float = 0.2
    score_samples: int = 512
    score_every: int = 25
    patience: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, VARIANTS)
        check_choice("kernel", self.kernel, KERNELS)
        least = {"iterations": 1, "batch_size": 2, "score_samples": 2, "score_every": 1, "patience": 1, "warmup": 0}
        for name, smallest in least.items():
            if type(getattr(self, name)) is not int or getattr(self, name) < smallest:
                raise ValueError(f"{name} must be an integer of at least {smallest}: got {getattr(self, name)!r}")
        for name in ("lr", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive: got {getattr(self, name)!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1): got {self.ema!r}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie in (0, 1), a share of the data: got {self.held_out!r}")
        if self.iterations * self.batch_size >= HELD_OUT:
            raise ValueError(f"iterations times batch_size must be below 2^40: got {self.iterations * self.batch_size}")
        ops.as_seed(self.seed)

    def lr_at(self, iteration: int) -> float:
        """Learning rate of iteration 0 .. iterations-1."""
        falling = (1 + math.cos(math.pi * iteration / self.iterations)) / 2
        return self.lr * min(1.0, (iteration + 1) / max(self.warmup, 1)) * falling


def ggdm(
    model: Callable[[Tensor, Tensor], Tensor | NoiseMoments],
    data: Tensor,
    steps: int,
    *,
    initial: str | Solver | GGDMTable = "unip",
    spacing: str | float | None = None,
    features: Features | None = None,
    schedule: Schedule | str | None = None,
    prediction: str | None = None,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    dtype: torch.dtype = torch.float32,
    chunk: int = 32,
    rematerialise: bool = True,
    out: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    **settings: Any,
) -> GGDMTable:
    """The table that makes `steps` calls of a frozen network give samples nearest to data: all steps are unrolled, and
    Adam follows the gradient of the kernel distance between features of samples and of data to the table's numbers.

    model     as for `gms_fast.sample`, differentiable; its weights stay
    data      (N, *shape), in the model's units
    steps     K >= 1, the network calls of the sampler
    initial   "ddim", "dpm-solver++", "unip", a linear solver or a table: where it starts
    spacing   grid of its times, as in `Schedule.grid`; None: the solver's, else the schedule's own
    features  differentiable callable, images (n, *shape) -> (n, D): `load_features(..)`, a module; None: the pixels
    clip      data range for E[x_0|x_t] and the sample, or None: what `sample` will be told
    chunk     samples that the network sees at a time; any `batch_size` is accumulated exactly, and the results agree
    rematerialise  compute the inside of the network again on the way back: memory for one call instead of K, at half as
              much time again
    out       folder for `table.safetensors` (the best so far), `checkpoint.pt` and `curve.csv`; one that holds a search
              is continued if `resume`, else refused. Without it nothing is left when it is stopped
    settings  fields of `Settings`
    Returns the table with the best score on held-out data, which may be the first. Raises ValueError or TypeError
    naming the argument, FloatingPointError naming the iteration where the loss is NaN or infinite: the best table
    stays in `out`.
    """
    run = Settings(**settings)
    schedule, form = network.described(model, schedule, prediction)
    schedule = schedules.build(schedule)
    table = _first(initial, schedule, steps, spacing)
    table.check(model=model, schedule=schedule, steps=steps)
    weight = network.weight_of(model)
    device = torch.device("cpu") if weight is None else weight.device
    shape = _check_data(model, data, run)
    sampler = Sampler(
        model=model,
        schedule=schedule,
        form=form,
        shape=shape,
        clip=None if clip is None else as_range(clip),
        seed=run.seed,
        device=device,
        dtype=dtype,
        chunk=_positive("chunk", chunk),
        rematerialise=rematerialise,
    )
    features = pixels if features is None else features
    check_features(features, shape, device)
    configuration = {
        **asdict(run),
        "first": {name: getattr(table, name).tolist() for name in table.given},
        "schedule": schedule.config,
        "network": fingerprint(model),
        "prediction": form,
        "clip": None if clip is None else list(as_range(clip)),
        "dtype": str(dtype),
        "data": checkpoint.fingerprint([data]),
        "features": fingerprint(features) or getattr(features, "__qualname__", type(features).__qualname__),
    }
    learned = [p for owner in (model, features) if isinstance(owner, nn.Module) for p in owner.parameters()]
    wanted = [p.requires_grad for p in learned]
    for p in learned:
        p.requires_grad_(False)
    try:
        _check_model(sampler, table, run.variant)
        search = _Search(run, sampler, features, data, table, configuration)
        search.open(None if out is None else Path(out), resume)
        return search.run(progress)
    finally:
        for p, before in zip(learned, wanted, strict=True):
            p.requires_grad_(before)


class _Search:
    """Parameters, their running average, the optimiser, the best table so far, and the curve of scores."""

    def __init__(
        self,
        settings: Settings,
        sampler: Sampler,
        features: Features,
        data: Tensor,
        table: GGDMTable,
        configuration: dict[str, Any],
    ) -> None:
        self.settings, self.sampler, self.features, self.configuration = settings, sampler, features, configuration
        self.parameters = Parameters(table, settings.variant, stochastic=settings.stochastic)
        self.average = {n: p.detach().clone() for n, p in self.parameters.named_parameters()}
        self.optimiser = torch.optim.Adam(self.parameters.parameters(), lr=settings.lr)
        self.iteration, self.smooth, self.folder = 0, math.nan, None
        self.best: dict[str, Any] = {"score": math.inf, "iteration": 0, "parameters": self.average}
        self.curve: list[list[float]] = []
        with torch.no_grad():
            real = self._seen(data).double()
        self.centre, self.scale = real.mean(0), real.std(0).square().mean().sqrt()
        real = (real - self.centre) / self.scale
        held = min(max(round(settings.held_out * len(data)), 2), len(data) - 2)
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(settings.seed & 0xFFFFFFFF))
        self.loss, self.score = (KernelDistance(real[i], settings.kernel) for i in (order[held:], order[:held]))

    def open(self, folder: Path | None, resume: bool) -> None:
        """Go on from what is in the folder, if there is one."""
        self.folder = folder
        if folder is None:
            return
        path = folder / CHECKPOINT
        if path.exists() and not resume:
            raise FileExistsError(f"out: {folder} already holds a search; resume it or choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            state = checkpoint.read(path, FORMAT, FIELDS)
            message = f"{folder} was made with another configuration; choose another folder"
            check_same(state["configuration"], self.configuration, message)
            self.iteration, self.best, self.curve = state["iteration"], state["best"], state["curve"]
            self.average = state["average"]
            self.parameters.load_state_dict(state["parameters"])
            self.optimiser.load_state_dict(state["optimiser"])

    def run(self, progress: bool) -> GGDMTable:
        every, total = self.settings.score_every, self.settings.iterations
        with tqdm(total=total, initial=self.iteration, disable=not progress, desc="search", unit="it") as bar:
            if not self.curve:
                self._judge(bar)
            while self.iteration < total and not self._stalled():
                self.step()
                bar.update()
                if self.iteration % every == 0 or self.iteration == total:
                    self._judge(bar)
        return self.table()

    def step(self) -> None:
        """One iteration of Adam."""
        settings, n = self.settings, self.settings.batch_size
        try:
            made = self.parameters()
            x = self.sampler(made["tau"], self.parameters.updates(made), n, self.iteration * n)
        except ValueError as error:  # the guard of the marginals
            raise self._diverged(str(error)) from error
        loss = self.loss(self._normalised(x))
        if not bool(loss.isfinite()):
            raise self._diverged(f"loss is {float(loss):g}")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters.parameters(), settings.clip_norm)
        if not bool(norm.isfinite()):
            raise self._diverged(f"the gradient's norm is {float(norm):g}")
        self.optimiser.param_groups[0]["lr"] = settings.lr_at(self.iteration)
        self.optimiser.step()
        decay = min(settings.ema, (1 + self.iteration) / (10 + self.iteration))
        for name, p in self.parameters.named_parameters():
            self.average[name] = torch.lerp(self.average[name], p.detach(), 1 - decay)
        self.smooth = loss.item() if math.isnan(self.smooth) else 0.9 * self.smooth + 0.1 * loss.item()
        self.iteration += 1

    def table(self) -> GGDMTable:
        """The best so far."""
        return self._of(self.best["parameters"]).table(self.configuration["network"])

    def _of(self, values: dict[str, Tensor]) -> Parameters:
        made = Parameters(self.parameters.first, self.settings.variant, stochastic=self.settings.stochastic)
        made.load_state_dict(values)
        return made

    def _seen(self, images: Tensor) -> Tensor:
        """Features (N, D), a few at a time."""
        return self.sampler.in_chunks(lambda part: self.features(part.to(self.sampler.device)), images)

    def _normalised(self, images: Tensor) -> Tensor:
        """Features less the mean of those of data, in units of their spread: then the kernel's powers weigh alike."""
        return (self._seen(images).double() - self.centre) / self.scale

    @torch.no_grad()
    def _judge(self, bar: tqdm) -> None:
        """Score the averaged table, keep it if it is the best, and write everything down."""
        average = self._of(self.average)
        made = average()
        x = self.sampler(made["tau"], average.updates(made), self.settings.score_samples, HELD_OUT)
        score = float(self.score(self._normalised(x)))
        if not math.isfinite(score):
            raise self._diverged(f"the score is {score:g}")
        if score < self.best["score"]:
            self.best = {"score": score, "iteration": self.iteration, "parameters": dict(self.average)}
        self.curve.append([self.iteration, self.smooth, score])
        bar.set_postfix(score=f"{score:.4g}", best=f"{self.best['score']:.4g}")
        self._save()

    def _stalled(self) -> bool:
        """Whether the last `patience` scores brought no new best one."""
        return sum(iteration > self.best["iteration"] for iteration, *_ in self.curve) >= self.settings.patience

    def _save(self) -> None:
        if self.folder is None:
            return
        state = {
            "configuration": self.configuration,
            "iteration": self.iteration,
            "parameters": self.parameters.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "curve": self.curve,
        }
        checkpoint.write(self.folder / CHECKPOINT, state, FORMAT)
        self.table().save(self.folder / TABLE)
        with (self.folder / CURVE).open("w", newline="") as file:
            csv.writer(file).writerows([["iteration", "loss", "score"], *self.curve])

    def _diverged(self, what: str) -> FloatingPointError:
        kept = "" if self.folder is None else f"; the best table so far is {self.folder / TABLE}"
        return FloatingPointError(f"search diverged: {what} at iteration {self.iteration}{kept}; try a lower lr")


def _first(initial: str | Solver | GGDMTable, schedule: Schedule, steps: int, spacing: str | float | None) -> GGDMTable:
    if isinstance(initial, GGDMTable):
        if spacing is not None:
            raise ValueError(f"spacing must not be given beside a table, which has its times: got {spacing!r}")
        return initial
    if type(steps) is not int or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1: got {steps!r}")
    solver = solvers.build(initial)
    spacing = next(s for s in (spacing, solver.spacing, schedule.spacing) if s is not None)
    return GGDMTable.of(solver, schedule, [float(t) for t in schedule.grid(steps, spacing)][:-1])


def _check_data(model: object, data: Tensor, run: Settings) -> tuple[int, ...]:
    if not isinstance(data, Tensor) or not data.is_floating_point() or data.ndim < 2 or len(data) < 4:
        got = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(f"data must be a floating tensor (N, *shape) of at least 4 samples: got {got}")
    shape = tuple(getattr(model, "sample_shape", data.shape[1:]))
    if tuple(data.shape[1:]) != shape:
        raise ValueError(f"data must be (N, {', '.join(map(str, shape))}) for this model: got {tuple(data.shape)}")
    if not bool(data.isfinite().all()):
        raise ValueError("data must be finite: it holds NaN or infinity")
    return shape


def _check_model(sampler: Sampler, table: GGDMTable, variant: str) -> None:
    """Raise ValueError where no gradient comes back through the network."""
    x = torch.zeros(1, *sampler.shape, device=sampler.device, dtype=sampler.dtype, requires_grad=True)
    time = sampler.schedule.network_time(table.tau[-1:]).to(sampler.device, torch.float32).requires_grad_()
    slopes = [None, None]
    if (output := sampler.network(x, time)).requires_grad:
        slopes = torch.autograd.grad(output.sum(), (x, time), allow_unused=True)
    if slopes[0] is None:
        raise ValueError("model must let a gradient through to x: look for torch.no_grad or detach in it")
    if variant == "time" and slopes[1] is None:
        raise ValueError('variant "time" needs a network that is differentiable in t, with a smooth embedding of times')


def _positive(name: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1: got {value!r}")
    return value
