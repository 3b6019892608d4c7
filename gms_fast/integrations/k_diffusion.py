"""Samplers with k-diffusion's signature: `sample_NAME(model, x, sigmas, ..)`, as in ComfyUI.

The state is x = x_0 + sigma eps. For a flow model in ComfyUI (its `model_sampling` is a CONST) it is
x = (1 - sigma) x_0 + sigma eps, and all samplers step in sigma/(1 - sigma), from sigma = 1 on.

The noise is counter-based. Without an entry "seed" in `extra_args`, the seed is drawn from torch's global generator.
Sample i depends on its seed and on i, not on the other samples. Noise belongs to its noise level: two stages of a run
with the same seed draw the same noise as one run.
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
    """Sample with the Gaussian Mixture Solver from a model that returns moments of the noise.

    See [`GMS`][gms_fast.solvers.GMS]. With `covariance` and `switch=0` the model may return E[x_0|x] alone.

    Args:
        model: Callable `model(x, sigma, **extra_args)`; sigma is (B,). It returns E[x_0|x] for x = x_0 + sigma eps,
            or `NoiseMoments` of eps.
        x: State (B, *) at `sigmas[0]`, floating point. It is not written to.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. A last level of 0 returns the model's last E[x_0|x].
        extra_args: Keywords for the model. An entry "seed", an integer or one per sample, also seeds the noise.
        callback: Called before each step with a dict of "x", "i", "sigma", "sigma_hat" and "denoised".
        disable: True shows no progress bar, None shows one on a terminal only (default).
        covariance: Gaussian statistics of the data, their file, or the name of an embedded model. Elements are then
            drawn together while sigma > `switch`.
        switch: Noise level at which the draw by elements takes over; by default 0.75 `covariance.spread`.
        fit: Fit of the mixture: "free" (default), "exact", "adan" or "gaussian".
        component: "element" or "sample": scope of the draw of a mixture component; by default "element", for fit="adan"
            "sample".
        weight: Weight of the first component, in (0, 1), not 1/2.
        moments: "cumulant" (default) or "released": propagation of the third moment.
        clip_pixel: Grey levels of noise that the last step may leave (default 2); None draws it like the others.
        clip: Data range (low, high) for E[x_0|x], or None (default).
        central: True if the model's second and third moments are about the first.
        s_noise: Factor >= 0 of the noise (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normals shaped like x; by default the noise
            is counter-based.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

    Raises:
        ValueError: If an argument has a wrong value, or if the model returns too few moments.
        TypeError: If an argument has a wrong type.

    Examples:
        >>> def model(x, sigma):  # of data from N(0, 1)
        ...     s = sigma.view(-1, 1, 1, 1)
        ...     m, v = s * x / (1 + s**2), 1 / (1 + s**2)
        ...     return gms_fast.NoiseMoments(m, m**2 + v, m**3 + 3 * m * v)
        >>> sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
        >>> x = 10 * torch.randn(2, 1, 8, 8)
        >>> gms_fast.integrations.k_diffusion.sample_gms(model, x, sigmas).shape
        torch.Size([2, 1, 8, 8])

    References:
        Guo et al. 2023, arXiv 2311.00941.
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
    """Sample with ER-SDE-Solver and 200 points of quadrature, as ComfyUI does.

    See [`ERSDE`][gms_fast.solvers.ERSDE].

    Args:
        model: Callable `model(x, sigma, **extra_args)`; sigma is (B,). It returns E[x_0|x] for x = x_0 + sigma eps.
        x: State (B, *) at `sigmas[0]`, floating point. It is not written to.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. A last level of 0 returns the model's last E[x_0|x].
        extra_args: Keywords for the model. An entry "seed", an integer or one per sample, also seeds the noise.
        callback: Called before each step with a dict of "x", "i", "sigma", "sigma_hat" and "denoised".
        disable: True shows no progress bar, None shows one on a terminal only (default).
        noise_scaler: Function phi of sigma/alpha on float64 tensors, or its name in `ERSDE`; by default "er_sde_4".
        max_stage: Order of the solver, 1, 2 or 3 (default).
        s_noise: Factor >= 0 of the noise (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normals shaped like x; by default the noise
            is counter-based.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

    Raises:
        ValueError: If an argument has a wrong value.
        TypeError: If an argument has a wrong type.

    Examples:
        >>> def model(x, sigma):  # of data from N(0, 1)
        ...     return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)
        >>> sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
        >>> x = 10 * torch.randn(2, 1, 8, 8)
        >>> gms_fast.integrations.k_diffusion.sample_er_sde(model, x, sigmas, max_stage=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Cui et al. 2023, arXiv 2309.06169.
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
    """Sample with DPM-Solver++(2M), which draws no noise.

    See [`DPMSolverPP`][gms_fast.solvers.DPMSolverPP].

    Args:
        model: Callable `model(x, sigma, **extra_args)`; sigma is (B,). It returns E[x_0|x] for x = x_0 + sigma eps.
        x: State (B, *) at `sigmas[0]`, floating point. It is not written to.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. A last level of 0 returns the model's last E[x_0|x].
        extra_args: Keywords for the model. An entry "seed", an integer or one per sample, also seeds the noise.
        callback: Called before each step with a dict of "x", "i", "sigma", "sigma_hat" and "denoised".
        disable: True shows no progress bar, None shows one on a terminal only (default).
        s_noise: Factor >= 0 of the noise (default 1); unused here, since no noise is drawn.
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normals shaped like x; by default the noise
            is counter-based; unused here, since no noise is drawn.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

    Raises:
        ValueError: If an argument has a wrong value.
        TypeError: If an argument has a wrong type.

    Examples:
        >>> def model(x, sigma):  # of data from N(0, 1)
        ...     return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)
        >>> sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
        >>> x = 10 * torch.randn(2, 1, 8, 8)
        >>> gms_fast.integrations.k_diffusion.sample_dpmpp_2m(model, x, sigmas).shape
        torch.Size([2, 1, 8, 8])

    References:
        Lu et al. 2022, arXiv 2211.01095.
    """
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
    """Sample with SDE-DPM-Solver++(2M).

    See [`DPMSolverPP`][gms_fast.solvers.DPMSolverPP].

    Args:
        model: Callable `model(x, sigma, **extra_args)`; sigma is (B,). It returns E[x_0|x] for x = x_0 + sigma eps.
        x: State (B, *) at `sigmas[0]`, floating point. It is not written to.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. A last level of 0 returns the model's last E[x_0|x].
        extra_args: Keywords for the model. An entry "seed", an integer or one per sample, also seeds the noise.
        callback: Called before each step with a dict of "x", "i", "sigma", "sigma_hat" and "denoised".
        disable: True shows no progress bar, None shows one on a terminal only (default).
        eta: Amount of noise >= 0: 0 follows the probability flow, 1 (default) the reverse SDE.
        solver_type: "midpoint" (default) or "heun", the form of the second-order term.
        s_noise: Factor >= 0 of the noise (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normals shaped like x; by default the noise
            is counter-based.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

    Raises:
        ValueError: If an argument has a wrong value.
        TypeError: If an argument has a wrong type.

    Examples:
        >>> def model(x, sigma):  # of data from N(0, 1)
        ...     return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)
        >>> sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
        >>> x = 10 * torch.randn(2, 1, 8, 8)
        >>> gms_fast.integrations.k_diffusion.sample_dpmpp_2m_sde(model, x, sigmas, eta=0.5).shape
        torch.Size([2, 1, 8, 8])

    References:
        Lu et al. 2022, arXiv 2211.01095.
    """
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
    """Sample with SDE-DPM-Solver++(3M), in the form of k-diffusion.

    See [`DPMSolverPP`][gms_fast.solvers.DPMSolverPP].

    Args:
        model: Callable `model(x, sigma, **extra_args)`; sigma is (B,). It returns E[x_0|x] for x = x_0 + sigma eps.
        x: State (B, *) at `sigmas[0]`, floating point. It is not written to.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. A last level of 0 returns the model's last E[x_0|x].
        extra_args: Keywords for the model. An entry "seed", an integer or one per sample, also seeds the noise.
        callback: Called before each step with a dict of "x", "i", "sigma", "sigma_hat" and "denoised".
        disable: True shows no progress bar, None shows one on a terminal only (default).
        eta: Amount of noise >= 0: 0 follows the probability flow, 1 (default) the reverse SDE.
        s_noise: Factor >= 0 of the noise (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normals shaped like x; by default the noise
            is counter-based.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

    Raises:
        ValueError: If an argument has a wrong value.
        TypeError: If an argument has a wrong type.

    Examples:
        >>> def model(x, sigma):  # of data from N(0, 1)
        ...     return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)
        >>> sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
        >>> x = 10 * torch.randn(2, 1, 8, 8)
        >>> gms_fast.integrations.k_diffusion.sample_dpmpp_3m_sde(model, x, sigmas).shape
        torch.Size([2, 1, 8, 8])

    References:
        Lu et al. 2022, arXiv 2211.01095.
    """
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
    """Sample with UniPC, which draws no noise. The order falls to 1 at the end.

    See [`UniPC`][gms_fast.solvers.UniPC].

    Args:
        model: Callable `model(x, sigma, **extra_args)`; sigma is (B,). It returns E[x_0|x] for x = x_0 + sigma eps.
        x: State (B, *) at `sigmas[0]`, floating point. It is not written to.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. A last level of 0 returns the model's last E[x_0|x].
        extra_args: Keywords for the model. An entry "seed", an integer or one per sample, also seeds the noise.
        callback: Called before each step with a dict of "x", "i", "sigma", "sigma_hat" and "denoised".
        disable: True shows no progress bar, None shows one on a terminal only (default).
        variant: "bh1" (default) or "bh2", the function B(h).
        order: Order of the predictor, 1 .. 4 (default 3).
        s_noise: Factor >= 0 of the noise (default 1); unused here, since no noise is drawn.
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normals shaped like x; by default the noise
            is counter-based; unused here, since no noise is drawn.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

    Raises:
        ValueError: If an argument has a wrong value.
        TypeError: If an argument has a wrong type.

    Examples:
        >>> def model(x, sigma):  # of data from N(0, 1)
        ...     return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)
        >>> sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
        >>> x = 10 * torch.randn(2, 1, 8, 8)
        >>> gms_fast.integrations.k_diffusion.sample_unipc(model, x, sigmas, variant="bh2").shape
        torch.Size([2, 1, 8, 8])

    References:
        Zhao et al. 2023, arXiv 2302.04867.
    """
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
    """Skip the noisiest levels by Gaussian teleportation, then sample with another solver.

    The skipped levels cost no network evaluation. See [`Teleport`][gms_fast.solvers.Teleport].

    Args:
        model: Callable `model(x, sigma, **extra_args)`; sigma is (B,). It returns E[x_0|x] for x = x_0 + sigma eps.
        x: State (B, *) at `sigmas[0]`, floating point. It is not written to.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. A last level of 0 returns the model's last E[x_0|x].
        extra_args: Keywords for the model. An entry "seed", an integer or one per sample, also seeds the noise.
        callback: Called before each step with a dict of "x", "i", "sigma", "sigma_hat" and "denoised".
        disable: True shows no progress bar, None shows one on a terminal only (default).
        statistics: Gaussian statistics of the data, their file, or the name of an embedded model.
        until: Noise level sigma/alpha >= 1 where the model takes over; by default `then.reach` times
            `statistics.spread`.
        skip: Share of the steps to skip, in (0, 1), instead of `until`.
        then: Solver of the remaining steps, or its text (default "dpm-solver++").
        s_noise: Factor >= 0 of the noise (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normals shaped like x; by default the noise
            is counter-based.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

    Raises:
        ValueError: If an argument has a wrong value, or if both `until` and `skip` are given.
        TypeError: If an argument has a wrong type.

    Examples:
        >>> def model(x, sigma):  # of data from N(0, 1)
        ...     return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)
        >>> sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
        >>> x = 10 * torch.randn(2, 1, 8, 8)
        >>> gms_fast.integrations.k_diffusion.sample_teleport(model, x, sigmas, statistics="digits", skip=0.5).shape
        torch.Size([2, 1, 8, 8])

    References:
        Wang & Vastola 2024, arXiv 2412.09726.
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
    """Sample with DPM-Solver-v3, which draws no noise.

    The model is called at the nodes of the statistics nearest to the sigmas. See
    [`DPMSolverV3`][gms_fast.solvers.DPMSolverV3].

    Args:
        model: Callable `model(x, sigma, **extra_args)`; sigma is (B,). It returns E[x_0|x] for x = x_0 + sigma eps.
        x: State (B, *) at `sigmas[0]`, floating point. It is not written to.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. A last level of 0 returns the model's last E[x_0|x].
        extra_args: Keywords for the model. An entry "seed", an integer or one per sample, also seeds the noise.
        callback: Called before each step with a dict of "x", "i", "sigma", "sigma_hat" and "denoised".
        disable: True shows no progress bar, None shows one on a terminal only (default).
        statistics: Empirical model statistics of this network, their file, or the name of an embedded model.
        order: Order of the predictor >= 1 (default 3).
        corrector: None, "same" (order of the last predictor) or "next" (one order more, default).
        pseudo: True takes pseudo derivatives in the predictor, which is steadier in few steps.
        lower_order_final: True ends with orders .., 2, 1.
        trust: lambda = log(alpha/sigma) from which on the statistics are used; by default they always are.
        s_noise: Factor >= 0 of the noise (default 1); unused here, since no noise is drawn.
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normals shaped like x; by default the noise
            is counter-based; unused here, since no noise is drawn.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

    Raises:
        ValueError: If an argument has a wrong value, if the statistics are of another network, or if two sigmas share a
            node.
        TypeError: If an argument has a wrong type.

    Examples:
        >>> def model(x, sigma):  # of data from N(0, 1)
        ...     return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)
        >>> sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
        >>> x = 10 * torch.randn(2, 1, 8, 8)
        >>> gms_fast.integrations.k_diffusion.sample_dpm_solver_v3(model, x, sigmas, statistics="digits").shape
        torch.Size([2, 1, 8, 8])

    References:
        Zheng et al. 2023, arXiv 2310.13268.
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
    """Sample with Euler's method for the probability flow, which is DDIM, with optional churn.

    See [`Euler`][gms_fast.solvers.Euler].

    Args:
        model: Callable `model(x, sigma, **extra_args)`; sigma is (B,). It returns E[x_0|x] for x = x_0 + sigma eps.
        x: State (B, *) at `sigmas[0]`, floating point. It is not written to.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. A last level of 0 returns the model's last E[x_0|x].
        extra_args: Keywords for the model. An entry "seed", an integer or one per sample, also seeds the noise.
        callback: Called before each step with a dict of "x", "i", "sigma", "sigma_hat" and "denoised".
        disable: True shows no progress bar, None shows one on a terminal only (default).
        s_churn: Amount of noise that all steps add together, >= 0 (default 0: none).
        s_tmin: Lowest noise level at which noise is added.
        s_tmax: Highest noise level at which noise is added.
        s_noise: Factor >= 0 of the noise (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normals shaped like x; by default the noise
            is counter-based.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

    Raises:
        ValueError: If an argument has a wrong value.
        TypeError: If an argument has a wrong type.

    Examples:
        >>> def model(x, sigma):  # of data from N(0, 1)
        ...     return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)
        >>> sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
        >>> x = 10 * torch.randn(2, 1, 8, 8)
        >>> gms_fast.integrations.k_diffusion.sample_euler(model, x, sigmas).shape
        torch.Size([2, 1, 8, 8])

    References:
        Karras et al. 2022, arXiv 2206.00364.
    """
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
    """Sample with DDIM and noise.

    See [`DDIM`][gms_fast.solvers.DDIM].

    Args:
        model: Callable `model(x, sigma, **extra_args)`; sigma is (B,). It returns E[x_0|x] for x = x_0 + sigma eps.
        x: State (B, *) at `sigmas[0]`, floating point. It is not written to.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. A last level of 0 returns the model's last E[x_0|x].
        extra_args: Keywords for the model. An entry "seed", an integer or one per sample, also seeds the noise.
        callback: Called before each step with a dict of "x", "i", "sigma", "sigma_hat" and "denoised".
        disable: True shows no progress bar, None shows one on a terminal only (default).
        eta: Amount of noise in [0, 1]: 0 equals `sample_euler`, 1 (default) is DDPM.
        s_noise: Factor >= 0 of the noise (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normals shaped like x; by default the noise
            is counter-based.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

    Raises:
        ValueError: If an argument has a wrong value.
        TypeError: If an argument has a wrong type.

    Examples:
        >>> def model(x, sigma):  # of data from N(0, 1)
        ...     return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)
        >>> sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
        >>> x = 10 * torch.randn(2, 1, 8, 8)
        >>> gms_fast.integrations.k_diffusion.sample_euler_ancestral(model, x, sigmas, eta=0.5).shape
        torch.Size([2, 1, 8, 8])

    References:
        Song et al. 2021, arXiv 2010.02502.
    """
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
    """Sample with Heun's method for the probability flow, of order 2, with optional churn.

    It takes two network evaluations a step, and one in a last step to sigma = 0. See [`Heun`][gms_fast.solvers.Heun].

    Args:
        model: Callable `model(x, sigma, **extra_args)`; sigma is (B,). It returns E[x_0|x] for x = x_0 + sigma eps.
        x: State (B, *) at `sigmas[0]`, floating point. It is not written to.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. A last level of 0 returns the model's last E[x_0|x].
        extra_args: Keywords for the model. An entry "seed", an integer or one per sample, also seeds the noise.
        callback: Called before each step with a dict of "x", "i", "sigma", "sigma_hat" and "denoised".
        disable: True shows no progress bar, None shows one on a terminal only (default).
        s_churn: Amount of noise that all steps add together, >= 0 (default 0: none).
        s_tmin: Lowest noise level at which noise is added.
        s_tmax: Highest noise level at which noise is added.
        s_noise: Factor >= 0 of the noise (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normals shaped like x; by default the noise
            is counter-based.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

    Raises:
        ValueError: If an argument has a wrong value.
        TypeError: If an argument has a wrong type.

    Examples:
        >>> def model(x, sigma):  # of data from N(0, 1)
        ...     return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)
        >>> sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
        >>> x = 10 * torch.randn(2, 1, 8, 8)
        >>> gms_fast.integrations.k_diffusion.sample_heun(model, x, sigmas).shape
        torch.Size([2, 1, 8, 8])

    References:
        Karras et al. 2022, arXiv 2206.00364.
    """
    call = Call(model, x, sigmas, extra_args, callback, disable, s_noise, noise_sampler)
    return sampled(call, Heun(churn=s_churn, s_min=s_tmin, s_max=s_tmax))


def _loaded(table: Kept | str | Path, load: Callable[[str | Path], Kept]) -> Kept:
    """Return a table, loaded from its file or embedded model if it is given by name."""
    return load(table) if isinstance(table, (str, Path)) else table


def _on_arrays(phi: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    """Convert a function of tensors to a function of float64 arrays."""
    return lambda x: torch.as_tensor(phi(torch.from_numpy(x))).numpy()
