"""Measuring the empirical model statistics of a network, in two passes over noised data.

Pass 1, with probes v of independent signs: l = E[sigma (J v) v], J = d eps/dx, the diagonal of sigma J on average.
Pass 2, with ' the derivative along the ODE: s = Cov(f, f')/Var(f) and b = E f' - s E f of

    f  = (sigma eps - l x)/alpha        f' = exp(-lambda) ((l - 1) eps + eps') - l' x/alpha

eps' = d eps along dx/dlambda = dlog(alpha)/dlambda x - sigma eps. All elementwise, expectations over x = alpha x_0 +
sigma z with data x_0. Source: Zheng et al. 2023 (arXiv 2310.13268), section 3.2, and its authors' script.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from gms_fast import ops, schedules
from gms_fast import prediction as predictions
from gms_fast.schedules import Schedule
from gms_fast.statistics.derivatives import Derivative, Noise, derivative_for, noise_of
from gms_fast.statistics.empirical import EmpiricalModel, fingerprint
from gms_fast.statistics.work import Work
from gms_fast.types import NoiseMoments

NOISE_1, PROBES, NOISE_2 = 3, 4, 5  # streams of the counter-based noise, whose step is the node


class Node(NamedTuple):
    """One point of the grid, float64 tensors (); `drift` = dlog(alpha)/dlambda, `dt` = dt/dlambda."""

    t: Tensor
    lam: Tensor
    alpha: Tensor
    sigma: Tensor
    drift: Tensor
    dt: Tensor


def nodes_of(schedule: Schedule, t: Tensor, lam: Tensor) -> list[Node]:
    """The numbers of the times t (N+1,), slopes by automatic differentiation of the schedule."""
    along = torch.ones_like(t)
    log_alpha_slope = torch.func.jvp(lambda t: schedule.alpha(t).log(), (t,), (along,))[1]
    dt = 1 / torch.func.jvp(schedule.log_snr, (t,), (along,))[1]
    return [Node(*n) for n in zip(t, lam, schedule.alpha(t), schedule.sigma(t), log_alpha_slope * dt, dt, strict=True)]


def diagonal(noise: Noise, derivative: Derivative, node: Node, x: Tensor, v: Tensor) -> Tensor:
    """sigma (J v) v of every sample, (B, *) float64: without bias sigma times the diagonal of J."""
    return node.sigma.to(x.device) * (derivative(noise, x, node.t, v, torch.zeros_like(node.t)) * v).double()


def residuals(
    noise: Noise, derivative: Derivative, node: Node, x: Tensor, l: Tensor, l_slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """f, f', and how large the two terms are whose difference f is, squared; of every sample, (B, *) float64."""
    lam, alpha, sigma, drift = (v.to(x.device) for v in (node.lam, node.alpha, node.sigma, node.drift))
    with torch.no_grad():
        eps = noise(x, node.t)
    change = derivative(noise, x, node.t, drift * x - sigma * eps, node.dt).double()
    eps, y, r = eps.double(), x.double() / alpha, (-lam).exp()
    f = r * eps - l * y
    return f, r * ((l - 1) * eps + change) - l_slope * y, (r * eps) ** 2 + (l * y) ** 2


def moments(f: Tensor, f_slope: Tensor, size: Tensor) -> Tensor:
    """Sums over the batch of f, f', f^2, f f' and of `size`, (5, *)."""
    return torch.stack([f, f_slope, f * f, f * f_slope, size]).sum(1)


def slope(l: Tensor, lam: Tensor, window: float | None) -> Tensor:
    """dl/dlambda (N+1, *): central differences, one-sided at the ends, then their moving average.

    window  its width in lambda, rounded to an odd number of nodes and cut off at the ends; none for None or 0
    """
    step = float(lam[-1] - lam[0]) / (len(lam) - 1)
    raw = torch.gradient(l, spacing=step, dim=0)[0]
    side = round((window or 0.0) / (2 * step))
    return torch.stack([raw[max(j - side, 0) : j + side + 1].mean(0) for j in range(len(raw))])


def regress(means: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """s and b of the mean `moments` (..., 5, *): least squares of f' on f; s = 0 where f varies too little to tell."""
    f, f_slope, f_f, f_f_slope, size = means.unbind(-means.ndim + 1)
    variance = f_f - f * f
    known = variance > tolerance * size
    s = torch.where(known, (f_f_slope - f * f_slope) / torch.where(known, variance, 1.0), 0.0)
    return s, f_slope - s * f


@torch.no_grad()
def empirical_model(
    model: Callable[[Tensor, Tensor], Tensor | NoiseMoments],
    data: Tensor,
    *,
    N: int = 120,
    samples: int = 1024,
    schedule: Schedule | str | None = None,
    prediction: str | None = None,
    t_max: float | None = None,
    t_min: float | None = None,
    batch_size: int = 64,
    seed: int = 0,
    window: float | None = 0.1,
    tolerance: float = 1e-12,
    out: str | Path | None = None,
    resume: bool = True,
    progress: bool = False,
    device: torch.device | str | None = None,
) -> EmpiricalModel:
    """Measure l, s, b of a network on data: about samples (N + 1) (1 + 2 + 2) calls' worth of time.

    model      callable (x, t) -> Tensor or NoiseMoments, in eval mode; x (B, *), t (B,) network times. Its attributes
               `schedule` and `prediction`, if any, are the defaults here
    data       (M, *) floating point, scaled as the network was trained. `samples` of them in random order, all again
               where M is smaller, are noised afresh at every node
    N          intervals of the grid, uniform in lambda from t_max to t_min (default: the schedule's). A solver's steps
               end on nodes, so take many more than it has steps
    samples    averaged at a node; errors fall as their square root. The published statistics have 1024 or 4096, and
               gain more by samples than by nodes
    prediction "noise", "x0", ...: what a single tensor from the model means
    seed       determines probes and noise, whatever the batch_size
    window     in lambda, of the moving average of dl/dlambda; None for none. The released script takes 11 nodes, a
               window of 10 (lambda_N - lambda_0)/N
    tolerance  s = 0 and b = E f' where Var(f) is at most this times E[(sigma eps/alpha)^2 + (l x/alpha)^2], the size of
               the terms that f is the difference of: as for Gaussian data, where f is constant. 1e-12 is what float32
               leaves of a difference
    out        file for the result. Unfinished results are kept in `<out>.partial`, which a run with the same arguments
               goes on from if `resume`; an existing file is refused
    progress   whether to show a progress bar on stderr
    device     of the calls (default: the model's, or the data's)
    Derivatives are taken in forward mode, or by two backward passes through a network with a layer that has none.
    Raises ValueError or TypeError naming the argument before the model is called, FileExistsError for `out`, and
    ValueError naming the node where the model returns NaN or infinity.
    """
    schedule, form = _described(model, schedule, prediction)
    _check_numbers(N, samples, batch_size, window, tolerance)
    chosen = _chosen(model, data, samples, seed)
    t, lam = _grid(schedule, N, t_max, t_min)
    network = fingerprint(model)
    configuration = {
        "N": N,
        "lambda": lam[[0, -1]].tolist(),
        "samples": samples,
        "seed": seed,
        "window": window,
        "schedule": None if out is None else schedule.config,
        "prediction": form,
        "network": network,
        "data": hashlib.sha256(chosen.numpy().tobytes()).hexdigest()[:16],
        "shape": list(chosen.shape[1:]),
    }
    out = None if out is None else Path(out)
    work = Work(_work_file(out, resume), ("l", "moments"), configuration)
    run = _Run(
        noise=noise_of(model, schedule, form),
        nodes=nodes_of(schedule, t, lam),
        data=chosen,
        seed=seed,
        batch_size=batch_size,
        device=_device(model, data, device),
    )
    with tqdm(total=2 * (N + 1), initial=len(work), disable=not progress, unit="node") as bar:
        try:
            run.fill(work, lam, window, bar)
        finally:
            work.write()
    s, b = regress(torch.stack(work.rows["moments"]), tolerance)
    statistics = EmpiricalModel(schedule, lam, torch.stack(work.rows["l"]), s, b, network=network, samples=samples)
    if out is not None:
        statistics.save(out)
        work.delete()
    return statistics


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One measurement: of what, where, with which samples and draws."""

    noise: Noise
    nodes: list[Node]
    data: Tensor
    seed: int
    batch_size: int
    device: torch.device

    def fill(self, work: Work, lam: Tensor, window: float | None, bar: tqdm) -> None:
        """Measure what `work` lacks: l at every node, and from all of it the moments."""
        nodes = range(len(self.nodes))
        with sdpa_kernel(SDPBackend.MATH):  # the one kind of attention that can be derived in every way
            derivative = derivative_for(self.noise, self._noised(0, 0, NOISE_1)[:1], self.nodes[0].t)
            for j in nodes[len(work.rows["l"]) :]:
                work.add("l", self.linear(derivative, j))
                bar.update()
            l = torch.stack(work.rows["l"])
            l_slope = slope(l, lam, window)
            for j in nodes[len(work.rows["moments"]) :]:
                work.add("moments", self.moments(derivative, j, l[j], l_slope[j]))
                bar.update()

    def linear(self, derivative: Derivative, j: int) -> Tensor:
        """l at node j, (*sample)."""
        node = self.nodes[j]
        draws = {"seed": self.seed, "step": j, "stream": PROBES}

        def batch(first: int, x: Tensor) -> Tensor:
            u = ops.philox_uniform(x.shape, sample_offset=first, device=x.device, dtype=x.dtype, **draws)
            return diagonal(self.noise, derivative, node, x, torch.where(u > 0.5, 1.0, -1.0).to(x.dtype)).sum(0)

        return self._mean(batch, j, NOISE_1)

    def moments(self, derivative: Derivative, j: int, l: Tensor, l_slope: Tensor) -> Tensor:
        """Means at node j of what `moments` sums, (5, *sample)."""
        node, l, l_slope = self.nodes[j], l.to(self.device), l_slope.to(self.device)
        return self._mean(lambda _, x: moments(*residuals(self.noise, derivative, node, x, l, l_slope)), j, NOISE_2)

    def _mean(self, batch: Callable[[int, Tensor], Tensor], j: int, stream: int) -> Tensor:
        """Mean over the samples of what `batch` sums, given the first index and the noised samples of a batch."""
        mean = sum(batch(first, self._noised(first, j, stream)) for first in range(0, len(self.data), self.batch_size))
        if not bool(mean.isfinite().all()):
            raise ValueError(f"model returned NaN or infinity at node {j} (t = {float(self.nodes[j].t):g})")
        return mean.cpu() / len(self.data)

    def _noised(self, first: int, j: int, stream: int) -> Tensor:
        """alpha x_0 + sigma z at node j, for a batch of samples from index `first` on."""
        x_0, node = self.data[first : first + self.batch_size].to(self.device), self.nodes[j]
        draws = {"seed": self.seed, "step": j, "stream": stream, "sample_offset": first}
        z = ops.philox_normal(x_0.shape, **draws, device=x_0.device, dtype=x_0.dtype)
        return float(node.alpha) * x_0 + float(node.sigma) * z


def _described(model: object, schedule: object, form: str | None) -> tuple[Schedule, str]:
    """The schedule and the form of prediction, given or the model's own."""
    if not callable(model):
        raise TypeError(f"model must be callable as model(x, t): got {type(model).__name__}")
    schedule = schedule if schedule is not None else getattr(model, "schedule", None)
    if schedule is None:
        raise ValueError("schedule must be given: this model has no attribute `schedule`")
    schedule = schedules.build(schedule) if isinstance(schedule, str) else schedule
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a schedule or its name: got {schedule!r}")
    form = form or getattr(model, "prediction", "noise")
    if form not in predictions.names():
        raise ValueError(f"prediction must be one of {', '.join(predictions.names())}: got {form!r}")
    return schedule, form


def _check_numbers(N: int, samples: int, batch_size: int, window: float | None, tolerance: float) -> None:
    for name, value, least in (("N", N, 2), ("samples", samples, 2), ("batch_size", batch_size, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}: got {value!r}")
    for name, value in (("window", window or 0.0), ("tolerance", tolerance)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative: got {value}")


def _chosen(model: object, data: object, samples: int, seed: int) -> Tensor:
    """`samples` of the data in random order, on the CPU, float32 or float64; over and over where there are fewer."""
    if not isinstance(data, Tensor) or not data.is_floating_point():
        raise TypeError(f"data must be a floating-point tensor (M, *): got {getattr(data, 'dtype', type(data))}")
    wanted = tuple(getattr(model, "sample_shape", data.shape[1:]))
    if data.ndim < 2 or len(data) == 0 or tuple(data.shape[1:]) != wanted:
        raise ValueError(f"data must be (M, {', '.join(map(str, wanted)) or '*'}) with M >= 1: got {tuple(data.shape)}")
    if not bool(data.isfinite().all()):
        raise ValueError("data must be finite: it holds NaN or infinity")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    chosen = data.detach().cpu()[order[torch.arange(samples) % len(data)]]
    return chosen if chosen.dtype == torch.float64 else chosen.float()


def _grid(schedule: Schedule, N: int, t_max: float | None, t_min: float | None) -> tuple[Tensor, Tensor]:
    """Times and half-log-SNR of the nodes, (N+1,) each."""
    t_max, t_min = schedule.t_max if t_max is None else t_max, schedule.t_min if t_min is None else t_min
    if not t_max > t_min:
        raise ValueError(f"t_max must be greater than t_min: got {t_max}, {t_min}")
    ends = schedule.log_snr([t_max, t_min])
    if not bool(ends.isfinite().all()):
        got = " .. ".join(f"{v:g}" for v in ends.tolist())
        raise ValueError(f"t_max, t_min must have finite log(alpha/sigma): got {t_max}, {t_min} with {got}")
    return schedule.grid(N, "log-snr", t_max, t_min), torch.linspace(*ends.tolist(), N + 1, dtype=torch.float64)


def _work_file(out: Path | None, resume: bool) -> Path | None:
    """Where unfinished results lie; FileExistsError where a result or results not to be resumed are."""
    if out is None:
        return None
    partial = out.with_name(out.name + ".partial")
    if out.exists():
        raise FileExistsError(f"out: {out} already exists; delete it or choose another file")
    if partial.exists() and not resume:
        raise FileExistsError(
            f"out: {partial} holds an unfinished measurement; resume it, delete it or choose another file"
        )
    return partial


def _device(model: object, data: Tensor, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    weight = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return data.device if weight is None else weight.device
