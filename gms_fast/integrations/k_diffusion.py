"""Samplers with k-diffusion's signature: `sample_NAME(model, x, sigmas, ..)`, as in ComfyUI.

The state is x = x_0 + sigma eps. For a flow model in ComfyUI (its `model_sampling` is a CONST) it is
x = (1 - sigma) x_0 + sigma eps; all samplers then step in sigma/(1 - sigma) and may start at sigma = 1.

The noise comes from a counter-based generator. If `extra_args` has no entry "seed", the seed is drawn from torch's
global generator. The noise of sample i depends on the seed, on i and on the noise level, but not on the other samples.
A run that is split into two stages with the same seed therefore draws the same noise as a single run.
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
    """Sample with the Gaussian Mixture Solver from a model that returns noise moments.

    With `covariance` and `switch=0`, the model needs to return only E[x_0|x]. See [`GMS`][gms_fast.solvers.GMS] for the
    equations.

    Args:
        model: Denoiser, called as `model(x, sigma, **extra_args)` with sigma of shape (B,) and the state x = x_0 +
            sigma eps. It returns the `NoiseMoments` of eps, or only E[x_0|x] if no further moments are needed.
        x: State (B, *) at noise level `sigmas[0]`, with a floating dtype. It is not modified.
        sigmas: Noise levels (K+1,), finite, >= 0 and in decreasing order. If several levels are equal, only the first
            counts. If the last level is 0, the sample is the model's last E[x_0|x].
        extra_args: Keyword arguments for the model. An entry "seed", if present, also seeds the noise; it is a single
            integer or one integer per sample.
        callback: Function that is called before each step with a dict. The dict contains the state "x", the index "i"
            and noise level "sigma" of the step, the level "sigma_hat" at which the model was called, and E[x_0|x] as
            "denoised".
        disable: If True, no progress bar is shown. If False, the bar is shown. None (default) shows it only on a
            terminal.
        covariance: Gaussian statistics of the data, the path of their file, or the name of an embedded model. At noise
            levels above `switch`, all elements of a sample are then drawn jointly with this covariance. None (default)
            draws the elements independently at every level.
        switch: Noise level sigma above which `covariance` is used. At this level and below, each element is drawn
            independently from the mixture. It may only be given together with `covariance`. The default is 0.75 times
            `covariance.spread`, the largest standard deviation of the data in any direction.
        fit: Method that fits the mixture to the moments: "free" (default), "exact", "adan" or "gaussian".
            [`fit_mixture`][gms_fast.ops.fit_mixture] describes them.
        component: Scope of the random choice between the two mixture components. With "element", each element chooses
            its own component. With "sample", all elements of a sample share one. None (default) selects "sample" for
            fit="adan" and "element" otherwise.
        weight: Weight of the first component, in (0, 1) but not 1/2 (default 1/3).
        moments: How the moments of x_0 are clipped to the data range: "cumulant" (default), or "released", as in the
            code released with the paper. [`gms_step`][gms_fast.ops.gms_step] describes both.
        clip_pixel: Upper bound on the mean absolute value of the noise that the last step adds to an image, in grey
            levels; the range [-1, 1] spans 255 of them (default 2). None treats the last step like every other step.
        clip: Data range (low, high) to which E[x_0|x] is clipped. None (default) turns clipping off.
        central: Set this to True if the model's second and third moments are central moments, that is, moments about
            the first. False (default) stands for raw moments.
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Function `(sigma, sigma_next)` that returns standard normal noise with the shape of x. By
            default, the noise comes from the built-in counter-based generator.

    Returns:
        The samples, a tensor (B, *) with the dtype of x.

    Raises:
        ValueError: If an argument is out of range, or if the model returns too few moments.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> def model(x, sigma):  # exact for data from N(0, 1)
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
    """Sample with ER-SDE-Solver, with 200 quadrature points as in ComfyUI.

    See [`ERSDE`][gms_fast.solvers.ERSDE] for the equations.

    Args:
        model: Denoiser, called as `model(x, sigma, **extra_args)` with sigma of shape (B,). It returns E[x_0|x] for the
            state x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, with a floating dtype. It is not modified.
        sigmas: Noise levels (K+1,), finite, >= 0 and in decreasing order. If several levels are equal, only the first
            counts. If the last level is 0, the sample is the model's last E[x_0|x].
        extra_args: Keyword arguments for the model. An entry "seed", if present, also seeds the noise; it is a single
            integer or one integer per sample.
        callback: Function that is called before each step with a dict. The dict contains the state "x", the index "i"
            and noise level "sigma" of the step, the level "sigma_hat" at which the model was called, and E[x_0|x] as
            "denoised".
        disable: If True, no progress bar is shown. If False, the bar is shown. None (default) shows it only on a
            terminal.
        noise_scaler: Function phi of the noise level sigma/alpha that sets the amount of noise. Pass the name of one of
            the functions that [`ERSDE`][gms_fast.solvers.ERSDE] lists, or a callable that takes and returns float64
            tensors. None (default) selects "er_sde_4".
        max_stage: Order of the solver, 1, 2 or 3 (default).
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Function `(sigma, sigma_next)` that returns standard normal noise with the shape of x. By
            default, the noise comes from the built-in counter-based generator.

    Returns:
        The samples, a tensor (B, *) with the dtype of x.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> def model(x, sigma):  # exact for data from N(0, 1)
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

    See [`DPMSolverPP`][gms_fast.solvers.DPMSolverPP] for the equations.

    Args:
        model: Denoiser, called as `model(x, sigma, **extra_args)` with sigma of shape (B,). It returns E[x_0|x] for the
            state x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, with a floating dtype. It is not modified.
        sigmas: Noise levels (K+1,), finite, >= 0 and in decreasing order. If several levels are equal, only the first
            counts. If the last level is 0, the sample is the model's last E[x_0|x].
        extra_args: Keyword arguments for the model. An entry "seed", if present, also seeds the noise; it is a single
            integer or one integer per sample.
        callback: Function that is called before each step with a dict. The dict contains the state "x", the index "i"
            and noise level "sigma" of the step, the level "sigma_hat" at which the model was called, and E[x_0|x] as
            "denoised".
        disable: If True, no progress bar is shown. If False, the bar is shown. None (default) shows it only on a
            terminal.
        s_noise: Has no effect, because this solver draws no noise. It is accepted so that all samplers have the same
            signature.
        noise_sampler: Has no effect, because this solver draws no noise. It is accepted so that all samplers have the
            same signature.

    Returns:
        The samples, a tensor (B, *) with the dtype of x.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> def model(x, sigma):  # exact for data from N(0, 1)
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

    See [`DPMSolverPP`][gms_fast.solvers.DPMSolverPP] for the equations.

    Args:
        model: Denoiser, called as `model(x, sigma, **extra_args)` with sigma of shape (B,). It returns E[x_0|x] for the
            state x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, with a floating dtype. It is not modified.
        sigmas: Noise levels (K+1,), finite, >= 0 and in decreasing order. If several levels are equal, only the first
            counts. If the last level is 0, the sample is the model's last E[x_0|x].
        extra_args: Keyword arguments for the model. An entry "seed", if present, also seeds the noise; it is a single
            integer or one integer per sample.
        callback: Function that is called before each step with a dict. The dict contains the state "x", the index "i"
            and noise level "sigma" of the step, the level "sigma_hat" at which the model was called, and E[x_0|x] as
            "denoised".
        disable: If True, no progress bar is shown. If False, the bar is shown. None (default) shows it only on a
            terminal.
        eta: Amount of noise >= 0. 0 selects the probability flow, which has no noise, and 1 (default) selects the
            reverse SDE.
        solver_type: Form of the second-order term, "midpoint" (default) or "heun".
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Function `(sigma, sigma_next)` that returns standard normal noise with the shape of x. By
            default, the noise comes from the built-in counter-based generator.

    Returns:
        The samples, a tensor (B, *) with the dtype of x.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> def model(x, sigma):  # exact for data from N(0, 1)
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
    """Sample with SDE-DPM-Solver++(3M), as in k-diffusion.

    See [`DPMSolverPP`][gms_fast.solvers.DPMSolverPP] for the equations.

    Args:
        model: Denoiser, called as `model(x, sigma, **extra_args)` with sigma of shape (B,). It returns E[x_0|x] for the
            state x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, with a floating dtype. It is not modified.
        sigmas: Noise levels (K+1,), finite, >= 0 and in decreasing order. If several levels are equal, only the first
            counts. If the last level is 0, the sample is the model's last E[x_0|x].
        extra_args: Keyword arguments for the model. An entry "seed", if present, also seeds the noise; it is a single
            integer or one integer per sample.
        callback: Function that is called before each step with a dict. The dict contains the state "x", the index "i"
            and noise level "sigma" of the step, the level "sigma_hat" at which the model was called, and E[x_0|x] as
            "denoised".
        disable: If True, no progress bar is shown. If False, the bar is shown. None (default) shows it only on a
            terminal.
        eta: Amount of noise >= 0. 0 selects the probability flow, which has no noise, and 1 (default) selects the
            reverse SDE.
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Function `(sigma, sigma_next)` that returns standard normal noise with the shape of x. By
            default, the noise comes from the built-in counter-based generator.

    Returns:
        The samples, a tensor (B, *) with the dtype of x.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> def model(x, sigma):  # exact for data from N(0, 1)
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
    """Sample with UniPC, which draws no noise.

    The order decreases to 1 in the last steps. See [`UniPC`][gms_fast.solvers.UniPC] for the equations.

    Args:
        model: Denoiser, called as `model(x, sigma, **extra_args)` with sigma of shape (B,). It returns E[x_0|x] for the
            state x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, with a floating dtype. It is not modified.
        sigmas: Noise levels (K+1,), finite, >= 0 and in decreasing order. If several levels are equal, only the first
            counts. If the last level is 0, the sample is the model's last E[x_0|x].
        extra_args: Keyword arguments for the model. An entry "seed", if present, also seeds the noise; it is a single
            integer or one integer per sample.
        callback: Function that is called before each step with a dict. The dict contains the state "x", the index "i"
            and noise level "sigma" of the step, the level "sigma_hat" at which the model was called, and E[x_0|x] as
            "denoised".
        disable: If True, no progress bar is shown. If False, the bar is shown. None (default) shows it only on a
            terminal.
        variant: Function B(h) of the step size h in log(alpha/sigma): "bh1" (default) for B = h, or "bh2" for B = 1 -
            e^{-h}.
        order: Order of the predictor, from 1 to 4 (default 3).
        s_noise: Has no effect, because this solver draws no noise. It is accepted so that all samplers have the same
            signature.
        noise_sampler: Has no effect, because this solver draws no noise. It is accepted so that all samplers have the
            same signature.

    Returns:
        The samples, a tensor (B, *) with the dtype of x.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> def model(x, sigma):  # exact for data from N(0, 1)
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

    Teleportation moves x in closed form to a lower noise level, as if the data were Gaussian. The skipped levels cost
    no network evaluations. See [`Teleport`][gms_fast.solvers.Teleport] for the equations.

    Args:
        model: Denoiser, called as `model(x, sigma, **extra_args)` with sigma of shape (B,). It returns E[x_0|x] for the
            state x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, with a floating dtype. It is not modified.
        sigmas: Noise levels (K+1,), finite, >= 0 and in decreasing order. If several levels are equal, only the first
            counts. If the last level is 0, the sample is the model's last E[x_0|x].
        extra_args: Keyword arguments for the model. An entry "seed", if present, also seeds the noise; it is a single
            integer or one integer per sample.
        callback: Function that is called before each step with a dict. The dict contains the state "x", the index "i"
            and noise level "sigma" of the step, the level "sigma_hat" at which the model was called, and E[x_0|x] as
            "denoised".
        disable: If True, no progress bar is shown. If False, the bar is shown. None (default) shows it only on a
            terminal.
        statistics: Gaussian statistics of the data, the path of their file, or the name of an embedded model.
        until: Noise level sigma/alpha >= 1 at which the teleport ends and `then` begins. The default is
            `statistics.spread`, the largest standard deviation of the data in any direction, times the factor `reach`
            of the solver `then`, but at least 1.
        skip: Fraction of the steps to skip, in (0, 1), in place of `until`.
        then: Solver for the remaining steps, as an object or a solver string (default "dpm-solver++").
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Function `(sigma, sigma_next)` that returns standard normal noise with the shape of x. By
            default, the noise comes from the built-in counter-based generator.

    Returns:
        The samples, a tensor (B, *) with the dtype of x.

    Raises:
        ValueError: If an argument is out of range, or if both `until` and `skip` are given.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> def model(x, sigma):  # exact for data from N(0, 1)
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

    The statistics are known at a fixed set of noise levels, the nodes. The model is called at the node nearest to each
    sigma. See [`DPMSolverV3`][gms_fast.solvers.DPMSolverV3] for the equations.

    Args:
        model: Denoiser, called as `model(x, sigma, **extra_args)` with sigma of shape (B,). It returns E[x_0|x] for the
            state x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, with a floating dtype. It is not modified.
        sigmas: Noise levels (K+1,), finite, >= 0 and in decreasing order. If several levels are equal, only the first
            counts. If the last level is 0, the sample is the model's last E[x_0|x].
        extra_args: Keyword arguments for the model. An entry "seed", if present, also seeds the noise; it is a single
            integer or one integer per sample.
        callback: Function that is called before each step with a dict. The dict contains the state "x", the index "i"
            and noise level "sigma" of the step, the level "sigma_hat" at which the model was called, and E[x_0|x] as
            "denoised".
        disable: If True, no progress bar is shown. If False, the bar is shown. None (default) shows it only on a
            terminal.
        statistics: Empirical model statistics of this network, the path of their file, or the name of an embedded
            model.
        order: Order of the predictor, from 1 to 8, or from 1 to 7 with corrector="next" (default 3).
        corrector: Correction of the state after each network evaluation; it costs no further evaluations. None turns it
            off. "same" uses the order of the preceding predictor, and "next" (default) uses an order higher by one.
        pseudo: If True, the k-th derivative in the predictor is a divided difference of the last k + 1 values (a pseudo
            derivative), which is more stable in runs of few steps. If False (default), all derivatives are those of the
            polynomial through all values.
        lower_order_final: If True (default), the order decreases to 1 in the last steps.
        trust: Smallest lambda = log(alpha/sigma) at which the statistics are used. Below it, they are replaced by l = 1
            and s = b = 0, as in data prediction. None (default) uses the statistics everywhere.
        s_noise: Has no effect, because this solver draws no noise. It is accepted so that all samplers have the same
            signature.
        noise_sampler: Has no effect, because this solver draws no noise. It is accepted so that all samplers have the
            same signature.

    Returns:
        The samples, a tensor (B, *) with the dtype of x.

    Raises:
        ValueError: If an argument is out of range, if the statistics belong to another network, or if two sigmas have
            the same nearest node.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> def model(x, sigma):  # exact for data from N(0, 1)
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
    """Sample with Euler's method for the probability flow, with optional churn.

    Without churn, this is DDIM. Churn adds noise before a step, which then starts at a higher noise level. See
    [`Euler`][gms_fast.solvers.Euler] for the equations.

    Args:
        model: Denoiser, called as `model(x, sigma, **extra_args)` with sigma of shape (B,). It returns E[x_0|x] for the
            state x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, with a floating dtype. It is not modified.
        sigmas: Noise levels (K+1,), finite, >= 0 and in decreasing order. If several levels are equal, only the first
            counts. If the last level is 0, the sample is the model's last E[x_0|x].
        extra_args: Keyword arguments for the model. An entry "seed", if present, also seeds the noise; it is a single
            integer or one integer per sample.
        callback: Function that is called before each step with a dict. The dict contains the state "x", the index "i"
            and noise level "sigma" of the step, the level "sigma_hat" at which the model was called, and E[x_0|x] as
            "denoised".
        disable: If True, no progress bar is shown. If False, the bar is shown. None (default) shows it only on a
            terminal.
        s_churn: Total amount of churn over all K steps, >= 0. Before each step, the noise level is raised by the factor
            1 + gamma, where gamma = min(s_churn/K, sqrt(2) - 1). 0 (default) adds no noise.
        s_tmin: Lowest noise level at which noise is added (default 0).
        s_tmax: Highest noise level at which noise is added (default infinity).
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Function `(sigma, sigma_next)` that returns standard normal noise with the shape of x. By
            default, the noise comes from the built-in counter-based generator.

    Returns:
        The samples, a tensor (B, *) with the dtype of x.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> def model(x, sigma):  # exact for data from N(0, 1)
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
    """Sample with Euler's ancestral method, which is DDIM with added noise.

    See [`DDIM`][gms_fast.solvers.DDIM] for the equations.

    Args:
        model: Denoiser, called as `model(x, sigma, **extra_args)` with sigma of shape (B,). It returns E[x_0|x] for the
            state x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, with a floating dtype. It is not modified.
        sigmas: Noise levels (K+1,), finite, >= 0 and in decreasing order. If several levels are equal, only the first
            counts. If the last level is 0, the sample is the model's last E[x_0|x].
        extra_args: Keyword arguments for the model. An entry "seed", if present, also seeds the noise; it is a single
            integer or one integer per sample.
        callback: Function that is called before each step with a dict. The dict contains the state "x", the index "i"
            and noise level "sigma" of the step, the level "sigma_hat" at which the model was called, and E[x_0|x] as
            "denoised".
        disable: If True, no progress bar is shown. If False, the bar is shown. None (default) shows it only on a
            terminal.
        eta: Amount of noise, in [0, 1]. With 0, the sampler adds no noise and is the same as `sample_euler`. With 1
            (default), it adds as much noise as DDPM.
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Function `(sigma, sigma_next)` that returns standard normal noise with the shape of x. By
            default, the noise comes from the built-in counter-based generator.

    Returns:
        The samples, a tensor (B, *) with the dtype of x.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> def model(x, sigma):  # exact for data from N(0, 1)
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
    """Sample with Heun's second-order method for the probability flow, with optional churn.

    Each step costs two network evaluations, except a last step to sigma = 0, which costs one. Churn adds noise before a
    step, which then starts at a higher noise level. See [`Heun`][gms_fast.solvers.Heun] for the equations.

    Args:
        model: Denoiser, called as `model(x, sigma, **extra_args)` with sigma of shape (B,). It returns E[x_0|x] for the
            state x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, with a floating dtype. It is not modified.
        sigmas: Noise levels (K+1,), finite, >= 0 and in decreasing order. If several levels are equal, only the first
            counts. If the last level is 0, the sample is the model's last E[x_0|x].
        extra_args: Keyword arguments for the model. An entry "seed", if present, also seeds the noise; it is a single
            integer or one integer per sample.
        callback: Function that is called before each step with a dict. The dict contains the state "x", the index "i"
            and noise level "sigma" of the step, the level "sigma_hat" at which the model was called, and E[x_0|x] as
            "denoised".
        disable: If True, no progress bar is shown. If False, the bar is shown. None (default) shows it only on a
            terminal.
        s_churn: Total amount of churn over all K steps, >= 0. Before each step, the noise level is raised by the factor
            1 + gamma, where gamma = min(s_churn/K, sqrt(2) - 1). 0 (default) adds no noise.
        s_tmin: Lowest noise level at which noise is added (default 0).
        s_tmax: Highest noise level at which noise is added (default infinity).
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Function `(sigma, sigma_next)` that returns standard normal noise with the shape of x. By
            default, the noise comes from the built-in counter-based generator.

    Returns:
        The samples, a tensor (B, *) with the dtype of x.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> def model(x, sigma):  # exact for data from N(0, 1)
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
    """Return statistics, loaded from their file or embedded model if they are given by name."""
    return load(table) if isinstance(table, (str, Path)) else table


def _on_arrays(phi: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    """Convert a function of tensors to a function of float64 arrays."""
    return lambda x: torch.as_tensor(phi(torch.from_numpy(x))).numpy()
