"""Measuring the empirical model statistics of a network: the two passes over noised data, batch by batch.

Noise and probes are counter-based, functions of the seed, the node and the index of the sample, so that neither the
size of the batches nor an interruption changes the result.
"""

import math
import operator
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from gms_fast import ops
from gms_fast.assumptions import attribute, describe
from gms_fast.derivatives import Derivative, derivative_for
from gms_fast.measure.estimate import Node, diagonal, moments, nodes_of, regress, residuals, slope
from gms_fast.measure.noise import Noise, noise_of
from gms_fast.measure.work import Work
from gms_fast.network import device_of
from gms_fast.schedules import Schedule
from gms_fast.storage import fingerprints
from gms_fast.storage.locks import locked_file
from gms_fast.tables.empirical import EmpiricalModel
from gms_fast.tables.origin import fingerprint
from gms_fast.tables.wide import home
from gms_fast.types import NoiseMoments

NOISE_1, PROBES, NOISE_2 = 3, 4, 5  # streams of the counter-based noise, whose step is the node


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
    replace: bool = False,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
    device: torch.device | str | None = None,
) -> EmpiricalModel:
    """Measure l, s, b of a network on data, in the time of about 8 samples (N + 1) calls.

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
               the terms that f is the difference of: as for Gaussian data, where f is constant; and where |s| exceeds
               one over the distance of nodes. 1e-12 is what float32 leaves of a difference
    out        file for the result. Unfinished results are kept in `<out>.partial`, which a run with the same arguments
               goes on from if `resume`, and a finished file of the same arguments is then the result. If `replace`, it
               begins anew and replaces `out` when it is done; else both are refused
    dtype      of s and b in the file (`EmpiricalModel.save`)
    progress   whether to show a progress bar on stderr
    device     of the calls (default: the model's, or the data's)
    Derivatives are taken in forward mode, or by two backward passes through a network with a layer that has none.
    Raises ValueError or TypeError naming the argument before the model is called, FileExistsError for `out`, and
    ValueError naming the node where the model returns NaN or infinity.
    """
    said = describe(model, schedule, prediction)
    schedule, form = said.built(), said.prediction
    check_numbers(N, samples, batch_size, seed, window, tolerance)
    chosen = _chosen(model, data, samples, seed)
    t, lam = _grid(schedule, N, t_max, t_min)
    run = _Run(
        noise=noise_of(model, schedule, form),
        nodes=nodes_of(schedule, t, lam),
        data=chosen,
        seed=seed,
        batch_size=batch_size,
        window=window,
        device=_device(model, data, device),
    )
    network = fingerprint(model)
    out, shape = None if out is None else Path(out), tuple(chosen.shape[1:])
    work = Work({"l": (N + 1, shape), "moments": (N + 1, (5, *shape))})
    origin = {"network": network, "prediction": form, "schedule": schedule.config, **run.configuration()}
    beside = {"tolerance": tolerance, "dtype": str(dtype)}
    with nullcontext() if out is None else locked_file(out):
        if out is not None and work.keep_for(out, origin, beside, resume=resume, replace=replace):
            return EmpiricalModel.load(out)
        with tqdm(total=2 * (N + 1), initial=len(work), disable=not progress, unit="node") as bar, work.kept():
            run.fill(work, bar)
        s, b = regress(torch.stack(work.rows["moments"]), tolerance, 1 / float(lam[1] - lam[0]))
        l = torch.stack(work.rows["l"])
        statistics = EmpiricalModel(schedule, lam, l, s, b, network=network, samples=samples)
        if out is not None:
            statistics.save(out, dtype=dtype, measurement=work.measurement)
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
    window: float | None
    device: torch.device

    @property
    def lam(self) -> Tensor:
        return torch.stack([node.lam for node in self.nodes])

    def configuration(self) -> dict[str, object]:
        """All that the results depend on, beside the network and how it is called."""
        return {
            "N": len(self.nodes) - 1,
            "lambda": self.lam[[0, -1]].tolist(),
            "samples": len(self.data),
            "shape": list(self.data.shape[1:]),
            "data": fingerprints.of_numbers(self.data),
            "seed": self.seed,
            "window": self.window,
        }

    def fill(self, work: Work, bar: tqdm) -> None:
        """Measure what `work` lacks: l at every node, and from all of it the moments."""
        nodes = range(len(self.nodes))
        derivative = derivative_for(self.noise, (self._noised(0, 0, NOISE_1)[:1], self.nodes[0].t))
        for j in nodes[len(work.rows["l"]) :]:
            work.add("l", self.linear(derivative, j))
            bar.update()
        l = torch.stack(work.rows["l"])
        l_slope = slope(l, self.lam, self.window)
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
        node, (l, l_slope) = self.nodes[j], (v.to(home(self.device)) for v in (l, l_slope))
        return self._mean(lambda _, x: moments(*residuals(self.noise, derivative, node, x, l, l_slope)), j, NOISE_2)

    def _mean(self, batch: Callable[[int, Tensor], Tensor], j: int, stream: int) -> Tensor:
        """Mean over the samples of what `batch` sums, given the first index and the noised samples of a batch."""
        starts = range(0, len(self.data), self.batch_size)
        total = reduce(operator.add, (batch(first, self._noised(first, j, stream)) for first in starts))
        if not bool(total.isfinite().all()):
            raise ValueError(f"model returned NaN or infinity at node {j} (t = {float(self.nodes[j].t):g})")
        return total.cpu() / len(self.data)

    def _noised(self, first: int, j: int, stream: int) -> Tensor:
        """alpha x_0 + sigma z at node j, for a batch of samples from index `first` on."""
        x_0, node = self.data[first : first + self.batch_size].to(self.device), self.nodes[j]
        draws = {"seed": self.seed, "step": j, "stream": stream, "sample_offset": first}
        z = ops.philox_normal(x_0.shape, **draws, device=x_0.device, dtype=x_0.dtype)
        return float(node.alpha) * x_0 + float(node.sigma) * z


def check_numbers(
    N: int, samples: int, batch_size: int, seed: int, window: float | None, tolerance: float = 0.0
) -> None:
    """Raise ValueError naming the one that is out of range."""
    for name, value, least in (("N", N, 2), ("samples", samples, 2), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}: got {value!r}")
    for name, number in (("window", window or 0.0), ("tolerance", tolerance)):
        if not 0 <= number < math.inf:
            raise ValueError(f"{name} must be finite and not negative: got {number}")


def check_data(model: object, data: object) -> None:
    """Raise TypeError or ValueError unless `data` are finite samples for the model."""
    if not isinstance(data, Tensor) or not data.is_floating_point():
        raise TypeError(f"data must be a floating-point tensor (M, *): got {getattr(data, 'dtype', type(data))}")
    wanted = tuple(attribute(model, "sample_shape", data.shape[1:]))
    if data.ndim < 2 or len(data) == 0 or tuple(data.shape[1:]) != wanted:
        raise ValueError(f"data must be (M, {', '.join(map(str, wanted)) or '*'}) with M >= 1: got {tuple(data.shape)}")
    if not bool(data.isfinite().all()):
        raise ValueError("data must be finite: it holds NaN or infinity")


def _chosen(model: object, data: Tensor, samples: int, seed: int) -> Tensor:
    """`samples` of the data in random order, on the CPU, float32 or float64; over and over where there are fewer."""
    check_data(model, data)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed), device="cpu")
    chosen = data.detach().cpu()[order[torch.arange(samples, device="cpu") % len(data)]]
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
    first, last = ends.tolist()
    lam = torch.linspace(first, last, N + 1, dtype=torch.float64, device="cpu")
    return schedule.grid(N, "log-snr", t_max, t_min), lam


def _device(model: object, data: Tensor, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return device_of(model) or data.device
