"""Differentiable diffusion sampler search (DDSS): Watson et al. 2022, arXiv 2202.05830.

The random numbers of iteration k are counter-based draws for sample indices that only k uses. A search that is stopped
and resumed therefore uses the same batches as an uninterrupted one.
"""

import dataclasses
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gms_fast import interrupts, ops, solvers
from gms_fast.assumptions import describe
from gms_fast.ops.checks import check_choice
from gms_fast.schedules import Schedule
from gms_fast.search.checks import check_data, check_features, check_model, device_of, frozen, positive
from gms_fast.search.distance import KERNELS, distances
from gms_fast.search.features import Features, described, pixels, seen
from gms_fast.search.parameters import VARIANTS, Parameters
from gms_fast.search.unroll import Sampler, Updates
from gms_fast.solvers import GGDMTable, Solver
from gms_fast.storage import atomic, checkpoint, fingerprints
from gms_fast.storage.configuration import check_same
from gms_fast.storage.locks import locked_folder
from gms_fast.storage.reading import refusing
from gms_fast.storage.schema import Fields, Integer, Listed, Optional, Real
from gms_fast.tables.origin import fingerprint
from gms_fast.training.rates import averaging, learning_rate
from gms_fast.types import NoiseMoments, as_range

TABLE, CHECKPOINT, CURVE = "table.safetensors", "checkpoint.pt", "curve.csv"
FORMAT = "gms_fast search checkpoint 1"
FIELDS = {"configuration", "iteration", "smooth", "parameters", "average", "optimiser", "best", "curve"}
FILES = (TABLE, CHECKPOINT, CURVE)
TRAINED, HELD_OUT = 1 << 40, 1 << 41  # first sample indices of the loss and of the score, far from others


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a search.

    Together with the network, the data and the initial table, they determine the result. They are also keyword
    arguments of [`ggdm`][gms_fast.search.ggdm], with the same defaults.

    Args:
        variant: Quantities that are learned: "ggdm", "pred", "time" or "constrained", as in `ggdm`.
        stochastic: Whether to also learn the noise scale sigma[t] of each step.
        kernel: Kernel of the distance, "cubic" or "linear".
        iterations: Maximum number of Adam steps, >= 1.
        batch_size: Number of samples per Adam step, >= 2. The product of `iterations` and `batch_size` must be at most
            2^40.
        lr: Peak learning rate, > 0.
        warmup: Number of iterations over which the learning rate rises to its peak, >= 0. Afterwards it falls to 0
            along a cosine.
        ema: Decay rate of the moving average of the coefficients, in [0, 1).
        clip_norm: Maximum norm of the gradient, > 0.
        held_out: Fraction of the data that is held out for the score, in (0, 1).
        score_samples: Number of samples drawn for each score, >= 2.
        score_every: Number of iterations between scores, >= 1.
        patience: Number of consecutive scores without improvement after which the search stops, >= 1.
        seed: Seed of all random numbers, in [-2^63, 2^64).

    Raises:
        ValueError: If a setting is out of range.
        TypeError: If `seed` is not an integer.

    Examples:
        >>> settings = gms_fast.search.Settings(iterations=100, warmup=10)
        >>> settings.lr_at(0), settings.lr_at(50)
        (0.001, 0.005)
    """

    variant: str = "pred"
    stochastic: bool = False
    kernel: str = "cubic"
    iterations: int = 120
    batch_size: int = 192
    lr: float = 1e-2
    warmup: int = 5
    ema: float = 0.9
    clip_norm: float = 1.0
    held_out: float = 0.2
    score_samples: int = 512
    score_every: int = 10
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
            raise ValueError(f"held_out must lie in (0, 1), as a fraction of the data: got {self.held_out!r}")
        if self.iterations * self.batch_size > HELD_OUT - TRAINED:
            raise ValueError(
                f"iterations times batch_size must be at most 2^40: got {self.iterations * self.batch_size}"
            )
        if type(self.seed) is not int:
            raise TypeError(f"seed must be an integer: got {self.seed!r}")
        ops.as_seed(self.seed)

    def lr_at(self, iteration: int) -> float:
        """Return the learning rate of an iteration.

        Args:
            iteration: Index of the iteration, from 0 to iterations - 1.

        Returns:
            Learning rate, in (0, lr].
        """
        return learning_rate(self.lr, iteration, self.iterations, self.warmup)


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
    replace: bool = False,
    progress: bool = True,
    variant: str = Settings.variant,
    stochastic: bool = Settings.stochastic,
    kernel: str = Settings.kernel,
    iterations: int = Settings.iterations,
    batch_size: int = Settings.batch_size,
    lr: float = Settings.lr,
    warmup: int = Settings.warmup,
    ema: float = Settings.ema,
    clip_norm: float = Settings.clip_norm,
    held_out: float = Settings.held_out,
    score_samples: int = Settings.score_samples,
    score_every: int = Settings.score_every,
    patience: int = Settings.patience,
    seed: int = Settings.seed,
) -> GGDMTable:
    """Learn a table of solver coefficients that brings samples as close to data as possible.

    All K = `steps` network evaluations of a sampler are unrolled into one differentiable function. Adam minimises the
    kernel distance between features of its samples and of the data. The network itself does not change.

    Args:
        model: Differentiable model, as in [`sample`][gms_fast.sample]. It is frozen and in eval mode during the search.
        data: Floating-point samples (N, *shape) in the model's data range, N >= 4.
        steps: Number of network evaluations K >= 1.
        initial: Starting point of the search: a linear solver such as "ddim", "dpm-solver++" or "unip", or a
            [`GGDMTable`][gms_fast.solvers.GGDMTable].
        spacing: Spacing of the initial times, as in [`Schedule.grid`][gms_fast.schedules.Schedule.grid]. Defaults to
            the spacing of the solver, or of the schedule if the solver has none. Must be None if `initial` is a table.
        features: Differentiable callable that maps images (n, *shape) to features (n, D), such as a module or the
            result of [`load_features`][gms_fast.search.load_features]. Defaults to the pixels. A module is in eval mode
            during the search.
        schedule: Noise schedule of the model, or its name. Defaults to the model's attribute `schedule`.
        prediction: What a single output tensor represents: "noise", "x0", ..., as in [`sample`][gms_fast.sample].
            Defaults to the model's attribute.
        clip: Range (lo, hi) to which E[x_0|x_t] and the samples are clipped, or None for no clipping. Pass the same
            value to [`sample`][gms_fast.sample] when you use the table.
        dtype: Dtype of the sampler's states, torch.float32 or torch.float64.
        chunk: Number of samples per network call, >= 1. It limits the memory and does not affect the gradient.
        rematerialise: Whether to recompute the network's activations in the backward pass. Memory is then needed for
            one call instead of K, but the search takes about 1.5 times as long.
        out: Folder for `table.safetensors` (the best table so far), `checkpoint.pt` and `curve.csv`. If None, nothing
            is written, and an interrupted search cannot be resumed.
        resume: Whether to continue a search that `out` already contains. If False, a folder that contains a search is
            refused.
        replace: Whether to delete a search that `out` already contains and start over.
        progress: Whether to show a progress bar on stderr.
        variant: Quantities that are learned. "ggdm": the weights mu of earlier states. "pred": these weights and
            those of the data estimate p_t E[x_0|x_t] + q_t x_t. "time": all of these and the times between the first
            and the last. "constrained": the weights mu under the constraint that the marginals q(x_t|x_0) remain those
            of the schedule.
        stochastic: Whether to also learn the noise scale sigma[t] of each step. If False, it remains that of the
            initial table.
        kernel: Kernel of the distance, "cubic" or "linear", as in
            [`KernelDistance`][gms_fast.search.KernelDistance].
        iterations: Maximum number of Adam steps, >= 1.
        batch_size: Number of samples per Adam step, >= 2.
        lr: Peak learning rate, > 0.
        warmup: Number of iterations over which the learning rate rises to its peak, >= 0. Afterwards it falls to 0
            along a cosine.
        ema: Decay rate of the moving average of the table, in [0, 1). Iteration k uses (1+k)/(10+k) as long as that is
            smaller.
        clip_norm: Maximum norm of the gradient, > 0.
        held_out: Fraction of the data that is held out for the score, in (0, 1). The loss uses the rest.
        score_samples: Number of samples drawn for each score, >= 2. All scores use the same noise.
        score_every: Number of iterations between scores, >= 1.
        patience: Number of consecutive scores without improvement after which the search stops, >= 1.
        seed: Seed of all random numbers, in [-2^63, 2^64).

    Returns:
        The [`GGDMTable`][gms_fast.solvers.GGDMTable] with the best score on held-out data. This may be the initial one.

    Raises:
        ValueError: If an argument is out of range, or if `out` contains a search with a different configuration.
        TypeError: If `model`, `features` or `dtype` has the wrong type.
        FileExistsError: If `out` contains a search and both `resume` and `replace` are False.
        FloatingPointError: If the loss becomes NaN or infinite. The best table so far remains in `out`.

    Examples:
        >>> model, data = gms_fast.load("digits"), gms_fast.data.load("digits")[:64]
        >>> table = gms_fast.search.ggdm(model, data, 2, iterations=2, batch_size=4,
        ...                              score_samples=4, progress=False)
        >>> gms_fast.sample(model, 2, solver=gms_fast.solvers.GGDM(table), n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Watson et al. 2022, arXiv 2202.05830.
    """
    run = Settings(
        variant=variant,
        stochastic=stochastic,
        kernel=kernel,
        iterations=iterations,
        batch_size=batch_size,
        lr=lr,
        warmup=warmup,
        ema=ema,
        clip_norm=clip_norm,
        held_out=held_out,
        score_samples=score_samples,
        score_every=score_every,
        patience=patience,
        seed=seed,
    )
    said = describe(model, schedule, prediction)
    schedule, form = said.built(), said.prediction
    table = _first(initial, schedule, steps, spacing)
    table.check(schedule=schedule, steps=positive("steps", steps))
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32 or torch.float64: got {dtype!r}")
    shape = check_data(model, data)
    features = pixels if features is None else features
    sampler = Sampler(
        model=model,
        schedule=schedule,
        form=form,
        shape=shape,
        clip=None if clip is None else as_range(clip),
        seed=run.seed,
        device=device_of(model, data),
        dtype=dtype,
        chunk=positive("chunk", chunk),
        rematerialise=rematerialise,
    )
    with torch.enable_grad(), frozen(model, features):
        sampler = check_model(sampler, table, run.variant)
        check_features(features, shape, sampler.device, dtype)
        search = _Search(run, sampler, features, data.to(dtype), table)
        with nullcontext() if out is None else locked_folder(out):
            search.open(None if out is None else Path(out), resume, replace)
            return search.run(progress)


class _Search:
    """State of a search: parameters, running average, optimiser, best table and scores."""

    def __init__(
        self, settings: Settings, sampler: Sampler, features: Features, data: Tensor, table: GGDMTable
    ) -> None:
        self.settings, self.sampler, self.features = settings, sampler, features
        self.data, self.first, self.network = data, table, fingerprint(sampler.model)
        self.parameters = self._new()
        self.free = dict(self.parameters.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self.free.items()}
        self.optimiser = torch.optim.Adam(self.free.values(), lr=settings.lr)
        self.iteration, self.smooth = 0, math.nan
        self.folder: Path | None = None
        self.best: dict[str, Any] = {"score": math.inf, "iteration": 0, "parameters": None}  # None: the first table
        self.curve: list[list[float]] = []
        self.loss, self.score = distances(
            self._seen, data, kernel=settings.kernel, held_out=settings.held_out, seed=settings.seed
        )

    def _new(self) -> Parameters:
        return Parameters(self.first, self.settings.variant, stochastic=self.settings.stochastic)

    def open(self, folder: Path | None, resume: bool, replace: bool) -> None:
        """Resume the search in the folder, if it holds one, or start there."""
        if folder is None:
            return
        self.folder, path = folder, folder / CHECKPOINT
        if replace:
            atomic.clear(folder, FILES)
        if path.exists() and not resume:
            raise FileExistsError(f"out: {folder} already holds a search: resume it, or choose another folder")
        if path.exists():
            state = checkpoint.read(path, FORMAT, FIELDS)
            message = f"{folder} was made with another configuration; choose another folder"
            check_same(state["configuration"], self._configuration, message)
            self._restore(path, state)

    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        tensors, curve = checkpoint.Like.of(self.free), Listed(Real(nan=True), 3, 3)
        best = {"score": Real(infinite=True), "iteration": Integer(0, self.settings.iterations)}
        wants = {
            "iteration": Integer(0, self.settings.iterations),
            "smooth": Real(nan=True),
            "parameters": tensors,
            "average": tensors,
            "best": Fields({**best, "parameters": Optional(tensors)}),
            "curve": Listed(curve, self.settings.iterations + 1),
        }
        checkpoint.check(path, state, wants, self.optimiser)
        self.iteration, self.smooth, self.best = state["iteration"], state["smooth"], state["best"]
        self.average, self.curve = state["average"], state["curve"]
        self.parameters.load_state_dict(state["parameters"])
        self.optimiser.load_state_dict(state["optimiser"])
        average = self._new()
        average.load_state_dict(self.average)
        with refusing(f"checkpoint {path} is damaged", path):
            self.table(), self.parameters.table(self.network), average.table(self.network)

    @cached_property
    def _configuration(self) -> dict[str, Any]:
        """Settings on which the result depends."""
        run, features = self.sampler, self.features
        return {
            **asdict(self.settings),
            "first": {name: getattr(self.first, name).tolist() for name in self.first.given},
            "schedule": run.schedule.config,
            "network": self.network,
            "prediction": run.form,
            "clip": None if run.clip is None else list(run.clip),
            "dtype": str(run.dtype),
            "data": fingerprints.of_tensors([self.data]),
            "features": described(features),
        }

    def run(self, progress: bool) -> GGDMTable:
        every, total = self.settings.score_every, self.settings.iterations
        bar = tqdm(total=total, initial=self.iteration, disable=not progress, desc="search", unit="it")
        with bar, interrupts.put_off() as check:
            if not self.curve:
                self._judge(self.first.tau, self.first.updates(), None)
            while self.iteration < total and not self._stalled():
                self.step()
                if self.iteration % every == 0 or self.iteration == total:
                    average = self._new()
                    average.load_state_dict(self.average)
                    self._judge(*self._made(average), self.average)
                bar.set_postfix(score=f"{self.curve[-1][-1]:.4g}", best=f"{self.best['score']:.4g}", refresh=False)
                bar.update()
                check(self._save)
        self._save()
        return self.table()

    def step(self) -> None:
        """Take one step of Adam."""
        n = self.settings.batch_size
        x = self.sampler(*self._made(self.parameters), n, TRAINED + self.iteration * n)
        loss = self.loss(x)
        self._check("loss", loss)
        slopes = torch.autograd.grad(loss, [*self.free.values()], allow_unused=True, materialize_grads=True)
        for p, slope in zip(self.free.values(), slopes, strict=True):
            p.grad = slope
        self._check("the gradient's norm", nn.utils.clip_grad_norm_(self.free.values(), self.settings.clip_norm))
        self.optimiser.param_groups[0]["lr"] = self.settings.lr_at(self.iteration)
        self.optimiser.step()
        decay = averaging(self.settings.ema, self.iteration)
        self.average = {name: torch.lerp(self.average[name], p.detach(), 1 - decay) for name, p in self.free.items()}
        self.smooth = loss.item() if math.isnan(self.smooth) else 0.9 * self.smooth + 0.1 * loss.item()
        self.iteration += 1

    def table(self) -> GGDMTable:
        """Return the best table so far."""
        values = self.best["parameters"]
        if values is None:
            return dataclasses.replace(self.first, network=self.network)
        best = self._new()
        best.load_state_dict(values)
        return best.table(self.network)

    def _made(self, parameters: Parameters) -> tuple[Tensor, Updates]:
        """Return the times and the updates of these parameters."""
        try:
            made = parameters()
            return made["tau"], parameters.updates(made)
        except ValueError as error:  # the marginals have lost their signal
            raise self._diverged(str(error)) from error

    def _seen(self, images: Tensor) -> Tensor:
        """Return the features (N, D) of images, computed in chunks."""
        return self.sampler.in_chunks(lambda part: seen(self.features, part.to(self.sampler.device)), images)

    @torch.no_grad()
    def _judge(self, tau: Tensor, updates: Updates, parameters: dict[str, Tensor] | None) -> None:
        """Score a table, keep its parameters if they are the best, and save."""
        x = self.sampler(tau, updates, self.settings.score_samples, HELD_OUT)
        score = self.score(x)
        self._check("the score", score)
        if float(score) < self.best["score"]:
            self.best = {"score": float(score), "iteration": self.iteration, "parameters": parameters}
        self.curve.append([self.iteration, self.smooth, float(score)])
        self._save()

    def _stalled(self) -> bool:
        """Return True if the last `patience` scores brought no new best."""
        return sum(iteration > self.best["iteration"] for iteration, *_ in self.curve) >= self.settings.patience

    def _save(self) -> None:
        """Write all files, the checkpoint last, so that it never refers to missing ones."""
        if self.folder is None:
            return
        self.folder.stat()  # raises if the folder was deleted during the search
        self.table().save(self.folder / TABLE)
        atomic.write_rows(self.folder / CURVE, [["iteration", "loss", "score"], *self.curve])
        state = {
            "configuration": self._configuration,
            "iteration": self.iteration,
            "smooth": self.smooth,
            "parameters": self.parameters.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "curve": self.curve,
        }
        checkpoint.write(self.folder / CHECKPOINT, state, FORMAT)

    def _check(self, name: str, value: Tensor) -> None:
        if not bool(value.isfinite()):
            raise self._diverged(f"{name} is {float(value):g}")

    def _diverged(self, what: str) -> FloatingPointError:
        path = None if self.folder is None else self.folder / TABLE
        kept = f"; the best table so far is {path}" if path is not None and path.exists() else ""
        return FloatingPointError(f"search diverged: {what} at iteration {self.iteration}{kept}; try a lower lr")


def _first(initial: str | Solver | GGDMTable, schedule: Schedule, steps: int, spacing: str | float | None) -> GGDMTable:
    if isinstance(initial, GGDMTable):
        if spacing is not None:
            raise ValueError(f"spacing must be None if initial is a table, which has its own times: got {spacing!r}")
        return initial
    solver = solvers.build(initial)
    spacing = next(s for s in (spacing, solver.spacing, schedule.spacing) if s is not None)
    return GGDMTable.of(solver, schedule, [float(t) for t in schedule.grid(positive("steps", steps), spacing)][:-1])
