"""Measurement of the empirical model statistics of a network.

It takes two passes over noised data, batch by batch. Noise and probes are counter-based functions of the seed, the node
and the sample index, so neither the batch size nor an interruption changes the result.
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

NOISE_1, PROBES, NOISE_2 = 3, 4, 5  # streams of the counter-based noise; its step is the node


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
    """Measure the curves l, s, b of a network for DPM-Solver-v3.

    The curves are averages over noised data, on a grid of lambda = log(alpha/sigma). With y = x/alpha and the network's
    noise estimate eps, l makes f = exp(-lambda) eps - l y as flat in x as possible. s and b are the coefficients of the
    linear regression df/dlambda ~ s f + b. A measurement costs about as much as 8 n (N + 1) network evaluations for n =
    `samples`. Derivatives are computed in forward mode, or with two backward passes if a layer does not support forward
    mode.

    Args:
        model: Network in eval mode, a callable `(x, t)` that returns a Tensor or NoiseMoments. x is (B, *sample), and t
            (B,) holds network times. The model's attributes `schedule` and `prediction` are the defaults of these
            arguments.
        data: Samples (M, *sample), floating point and scaled like the network's training data. `samples` of them are
            used, in random order and with new noise at every node. If M is smaller than `samples`, they repeat.
        N: Number of intervals of the grid, >= 2 (default 120). The grid is uniform in lambda from t_max to t_min. The
            steps of a solver end on its nodes, so N should be much larger than the number of steps.
        samples: Number of samples averaged at each node, >= 2 (default 1024). The error decreases with the square root
            of this number. The published statistics use 1024 or 4096. Adding samples helps more than adding nodes.
        schedule: Noise schedule or its name, or None (default) for the model's.
        prediction: Meaning of a single tensor that the model returns, such as "noise" or "x0", or None (default) for
            the model's.
        t_max: Noisiest time, or None (default) for the schedule's.
        t_min: Least noisy time, or None (default) for the schedule's.
        batch_size: Samples per network call, >= 1 (default 64). It limits the memory and does not change the result.
        seed: Seed >= 0 of the noise, of the random vectors that estimate derivatives, and of the order of the samples
            (default 0).
        window: Width in lambda of the moving average of dl/dlambda (default 0.1), or None for no average. The released
            script averages 11 nodes, which corresponds to a window of 10 (lambda_N - lambda_0)/N.
        tolerance: Relative variance of f below which s is set to 0 and b to E[f'] (default 1e-12). For Gaussian data,
            for example, f is constant. The variance is relative to E[(sigma eps/alpha)^2 + (l x/alpha)^2], the size of
            the two terms whose difference is f. In float32, rounding of the difference leaves a relative variance of
            about 1e-12. s is also set to 0 if |s| exceeds the inverse of the distance between nodes.
        out: File for the result, or None (default) to write nothing. An unfinished measurement is kept in
            `<out>.partial`.
        resume: True (default) continues from the `<out>.partial` of a measurement with the same arguments. If `out` is
            already the finished result of the same arguments, it is returned. False raises an error if such files
            exist.
        replace: True repeats the measurement and replaces `out` at the end (default False).
        dtype: dtype in which the file stores s and b, see
            [`EmpiricalModel`][gms_fast.statistics.EmpiricalModel]`.save` (default float32).
        progress: Show a progress bar on stderr (default False).
        device: Device of the network calls, or None (default) for the model's device, or else the data's.

    Returns:
        [`EmpiricalModel`][gms_fast.statistics.EmpiricalModel] with curves (N + 1, *sample).

    Raises:
        ValueError: If an argument is out of range, which is checked before the model is called, if `<out>.partial`
            belongs to a measurement with other arguments, or if the model returns NaN or infinity at a node.
        TypeError: If an argument has the wrong type, for example integer `data`.
        FileExistsError: If `out` exists and may be neither resumed nor replaced.

    Examples:
        >>> model, data = gms_fast.load("digits"), gms_fast.data.load("digits")
        >>> statistics = gms_fast.statistics.empirical_model(model, data, N=8, samples=8)
        >>> statistics.l.shape
        torch.Size([9, 1, 8, 8])
        >>> solver = gms_fast.solvers.DPMSolverV3(statistics)
        >>> gms_fast.sample(model, 2, solver=solver, n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Zheng et al. 2023, arXiv 2310.13268.
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
    """Model, nodes, data and settings of one measurement."""

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
        """Return all settings on which the results depend, besides the network and its form."""
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
        """Measure the missing rows of `work`: first l at every node, then the moments."""
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
        """Return l at node j, (*sample)."""
        node = self.nodes[j]
        draws = {"seed": self.seed, "step": j, "stream": PROBES}

        def batch(first: int, x: Tensor) -> Tensor:
            u = ops.philox_uniform(x.shape, sample_offset=first, device=x.device, dtype=x.dtype, **draws)
            return diagonal(self.noise, derivative, node, x, torch.where(u > 0.5, 1.0, -1.0).to(x.dtype)).sum(0)

        return self._mean(batch, j, NOISE_1)

    def moments(self, derivative: Derivative, j: int, l: Tensor, l_slope: Tensor) -> Tensor:
        """Return the means of `moments` at node j, (5, *sample)."""
        node, (l, l_slope) = self.nodes[j], (v.to(home(self.device)) for v in (l, l_slope))
        return self._mean(lambda _, x: moments(*residuals(self.noise, derivative, node, x, l, l_slope)), j, NOISE_2)

    def _mean(self, batch: Callable[[int, Tensor], Tensor], j: int, stream: int) -> Tensor:
        """Return the mean over all samples of what `batch` sums.

        `batch` gets the first sample index and the noised samples of a batch.
        """
        starts = range(0, len(self.data), self.batch_size)
        total = reduce(operator.add, (batch(first, self._noised(first, j, stream)) for first in starts))
        if not bool(total.isfinite().all()):
            raise ValueError(f"model returned NaN or infinity at node {j} (t = {float(self.nodes[j].t):g})")
        return total.cpu() / len(self.data)

    def _noised(self, first: int, j: int, stream: int) -> Tensor:
        """Return alpha x_0 + sigma z at node j, for a batch of samples from index `first` on."""
        x_0, node = self.data[first : first + self.batch_size].to(self.device), self.nodes[j]
        draws = {"seed": self.seed, "step": j, "stream": stream, "sample_offset": first}
        z = ops.philox_normal(x_0.shape, **draws, device=x_0.device, dtype=x_0.dtype)
        return float(node.alpha) * x_0 + float(node.sigma) * z


def check_numbers(
    N: int, samples: int, batch_size: int, seed: int, window: float | None, tolerance: float = 0.0
) -> None:
    """Raise ValueError naming the argument that is out of range."""
    for name, value, least in (("N", N, 2), ("samples", samples, 2), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}: got {value!r}")
    for name, number in (("window", window or 0.0), ("tolerance", tolerance)):
        if not 0 <= number < math.inf:
            raise ValueError(f"{name} must be finite and not negative: got {number}")


def check_data(model: object, data: object) -> None:
    """Raise TypeError or ValueError unless `data` holds finite samples for the model."""
    if not isinstance(data, Tensor) or not data.is_floating_point():
        raise TypeError(f"data must be a floating-point tensor (M, *): got {getattr(data, 'dtype', type(data))}")
    wanted = tuple(attribute(model, "sample_shape", data.shape[1:]))
    if data.ndim < 2 or len(data) == 0 or tuple(data.shape[1:]) != wanted:
        raise ValueError(f"data must be (M, {', '.join(map(str, wanted)) or '*'}) with M >= 1: got {tuple(data.shape)}")
    if not bool(data.isfinite().all()):
        raise ValueError("data must be finite: it holds NaN or infinity")


def _chosen(model: object, data: Tensor, samples: int, seed: int) -> Tensor:
    """Choose `samples` of the data in random order, repeating them where there are fewer.

    The result is on the CPU, float32 or float64.
    """
    check_data(model, data)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed), device="cpu")
    chosen = data.detach().cpu()[order[torch.arange(samples, device="cpu") % len(data)]]
    return chosen if chosen.dtype == torch.float64 else chosen.float()


def _grid(schedule: Schedule, N: int, t_max: float | None, t_min: float | None) -> tuple[Tensor, Tensor]:
    """Return the times and the half-log-SNR of the nodes, (N+1,) each."""
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
