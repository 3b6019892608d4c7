"""Samplers with k-diffusion's signature, for whatever calls sample_NAME(model, x, sigmas, ..), as ComfyUI does.

    model     model(x, sigma, **extra_args) -> E[x_0|x], x = x_0 + sigma eps, or NoiseMoments of eps; sigma is (B,)
    x         (B, *), the state at sigmas[0]. It is not written to, and the sample has its dtype
    sigmas    (K+1,) falling; with a last one of 0 the sample is the model's last E[x_0|x]
    extra_args  keywords of the model. "seed", an integer or one a sample, is the seed of the noise too; without it one
              is drawn from torch's global generator. Sample i depends on its seed and on i, not on the others
    callback  called as callback({"x", "i", "sigma", "sigma_hat", "denoised"}) before each step
    disable   True: no progress bar; None: one on a terminal only
    s_noise   factor of the noise
    noise_sampler  noise_sampler(sigma, sigma_next) -> standard normals shaped like x, in place of the counters' draws

Of a flow model in ComfyUI (its `model_sampling` is a CONST) the state is x = (1 - sigma) x_0 + sigma eps, and all
samplers here step in sigma/(1 - sigma), from sigma = 1 on. Noise belongs to its level: two stages of a run with the
same seed draw what one run draws. Wrong arguments raise ValueError or TypeError naming them.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gms_fast import solvers
from gms_fast.integrations.sigma_walk import Call, Callback, Model, NoiseSampler, sampled
from gms_fast.ops.checks import check_choice
from gms_fast.ops.types import DEFAULT
from gms_fast.solvers import DDIM, ERSDE, GMS, DPMSolverPP, DPMSolverV3, Euler, Heun, Solver, Teleport, UniPC
from gms_fast.tables import EmpiricalModel, Gaussian
from gms_fast.tables.empirical import load as load_curves
from gms_fast.tables.gaussian import load_gaussian

__all__ = [
    "sample_dpm_solver_v3",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_3m_sde",
    "sample_er_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_gms",
    "sample_heun",
    "sample_teleport",
    "sample_unipc",
]

ExtraArgs = dict[str, Any] | None
Kept = TypeVar("Kept")


def sample_gms(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    covariance: Gaussian | str | Path | None = None,
    switch: float | None = None,
    fit: str = "free",
    component: str | None = None,
    weight: float = DEFAULT.weight,
    moments: str = "cumulant",
    clip_pixel: float | None = 2,
    clip: tuple[float, float] | None = None,
    central: bool = False,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Gaussian Mixture Solver, for a model that returns NoiseMoments; any will do with a covariance and switch=0.

    covariance  Gaussian statistics of the data, or the file of them
    clip        data range for E[x_0|x], or None
    central     whether the model's second and third moments are about the first
    others      as of `gms_fast.solvers.GMS`
    """
    call = Call(model, x, sigmas, extra_args, callback, disable, s_noise, noise_sampler)
    solver = GMS(
        fit=fit,
        component=component,
        weight=weight,
        moments=moments,
        covariance=_loaded(covariance, load_gaussian),
        switch=switch,
        clip_pixel=clip_pixel,
    )
    return sampled(call, solver, clip=clip, central=central)


def sample_er_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    noise_scaler: str | Callable[[Tensor], Tensor] | None = None,
    max_stage: int = 3,
) -> Tensor:
    """ER-SDE-Solver with 200 points of quadrature, as in ComfyUI.

    noise_scaler  phi(sigma/alpha) on float64 tensors, or a name of `gms_fast.solvers.ERSDE`; None: "er_sde_4"
    max_stage     order, 1 to 3
    """
    call = Call(model, x, sigmas, extra_args, callback, disable, s_noise, noise_sampler)
    phi = _on_arrays(noise_scaler) if callable(noise_scaler) else noise_scaler or "er_sde_4"
    return sampled(call, ERSDE(order=max_stage, noise_scale=phi, points=200, variance_clip=0.0))


def sample_dpmpp_2m(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """DPM-Solver++(2M); it draws no noise."""
    call = Call(model, x, sigmas, extra_args, callback, disable, s_noise, noise_sampler)
    return sampled(call, DPMSolverPP(order=2, lower_order_final=False))


def sample_dpmpp_2m_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    eta: float = 1.0,
    solver_type: str = "midpoint",
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(2M), of solver_type "midpoint" or "heun"; eta >= 0 is the amount of noise."""
    call = Call(model, x, sigmas, extra_args, callback, disable, s_noise, noise_sampler)
    check_choice("solver_type", solver_type, ("midpoint", "heun"))
    return sampled(call, DPMSolverPP(order=2, sde=eta, kind=solver_type, lower_order_final=False))


def sample_dpmpp_3m_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(3M): eta >= 0 is the amount of noise."""
    call = Call(model, x, sigmas, extra_args, callback, disable, s_noise, noise_sampler)
    return sampled(call, DPMSolverPP(order=3, sde=eta, kind="k-diffusion", lower_order_final=False))


def sample_unipc(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    variant: str = "bh1",
    order: int = 3,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """UniPC of a variant "bh1" or "bh2"; order is 1 to 4, and falls to 1 at the end. It draws no noise."""
    call = Call(model, x, sigmas, extra_args, callback, disable, s_noise, noise_sampler)
    return sampled(call, UniPC(order=order, variant=variant))


def sample_teleport(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    statistics: Gaussian | str | Path,
    until: float | None = None,
    skip: float | None = None,
    then: str | Solver = "dpm-solver++",
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Gaussian teleportation: the noisiest levels are skipped without a call of the model.

    statistics  Gaussian statistics of the data, or the file of them
    until       sigma/alpha >= 1 where the model takes over; default: `then.reach` times `statistics.spread`
    skip        in place of `until`: the share of the steps to skip, in (0, 1)
    then        the solver from there on, or its text
    """
    call = Call(model, x, sigmas, extra_args, callback, disable, s_noise, noise_sampler)
    known = _loaded(statistics, load_gaussian)
    return sampled(call, Teleport(known, until, solvers.build(then), skip=skip))


def sample_dpm_solver_v3(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    statistics: EmpiricalModel | str | Path,
    order: int = 3,
    corrector: str | None = "next",
    pseudo: bool = False,
    lower_order_final: bool = True,
    trust: float | None = None,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """DPM-Solver-v3; it draws no noise, and asks the model at the statistics' nodes nearest to the sigmas.

    statistics  empirical model statistics of this network, or the file of them
    others      as of `gms_fast.solvers.DPMSolverV3`
    """
    call = Call(model, x, sigmas, extra_args, callback, disable, s_noise, noise_sampler)
    known = _loaded(statistics, load_curves)
    solver = DPMSolverV3(known, order, corrector, pseudo=pseudo, lower_order_final=lower_order_final, trust=trust)
    return sampled(call, solver)


def sample_euler(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Euler's method for the probability flow, which is DDIM, with as much churn at sigmas in [s_tmin, s_tmax]."""
    call = Call(model, x, sigmas, extra_args, callback, disable, s_noise, noise_sampler)
    return sampled(call, Euler(churn=s_churn, s_min=s_tmin, s_max=s_tmax))


def sample_euler_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """DDIM with noise: eta in [0, 1] is 0 for `sample_euler`, 1 for DDPM."""
    call = Call(model, x, sigmas, extra_args, callback, disable, s_noise, noise_sampler)
    return sampled(call, DDIM(eta=eta))


def sample_heun(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Heun's method for the probability flow: two calls of the model a step, one in the last step to no noise.

    s_churn, s_tmin, s_tmax  as of `sample_euler`
    """
    call = Call(model, x, sigmas, extra_args, callback, disable, s_noise, noise_sampler)
    return sampled(call, Heun(churn=s_churn, s_min=s_tmin, s_max=s_tmax))


def _loaded(table: Kept | str | Path, load: Callable[[str | Path], Kept]) -> Kept:
    """A table, or that of a file or of an embedded model."""
    return load(table) if isinstance(table, (str, Path)) else table


def _on_arrays(phi: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    """A function of tensors as one of float64 arrays."""
    return lambda x: torch.as_tensor(phi(torch.from_numpy(x))).numpy()
