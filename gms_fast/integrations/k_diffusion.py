"""Samplers with k-diffusion's signature: `sample_NAME(model, x, sigmas, ..)`, as in ComfyUI.

The state is x = x_0 + sigma eps. For a flow model in ComfyUI (its `model_sampling` is a CONST) it is
x = (1 - sigma) x_0 + sigma eps, and all samplers step in sigma/(1 - sigma), from sigma = 1 on.

The noise comes from a counter-based generator. If `extra_args` has no entry "seed", the seed is drawn from torch's
global generator. The noise of sample i depends on the seed and on i, not on the other samples. It is numbered by noise
level: a run that is split into two stages with the same seed draws the same noise as a single run.
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

    See [`GMS`][gms_fast.solvers.GMS]. With `covariance` and `switch=0`, the model may return only E[x_0|x].

    Args:
        model: Callable `model(x, sigma, **extra_args)`, where sigma is (B,) and x = x_0 + sigma eps. It returns
            `NoiseMoments` of eps, or only E[x_0|x] if no further moments are needed.
        x: State (B, *) at noise level `sigmas[0]`, floating point. It is not modified.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. If the last one is 0, the model's last E[x_0|x] is returned.
        extra_args: Keyword arguments for the model. Its entry "seed", if any, also seeds the noise: an integer, or one
            per sample.
        callback: Called before each step with a dict: the state "x", the step index "i", its level "sigma", the level
            "sigma_hat" at which the model was called, and E[x_0|x] as "denoised".
        disable: Switch of the progress bar. True: no bar. False: a bar. None (default): a bar only on a terminal.
        covariance: Gaussian statistics of the data, a file that holds them, or the name of an embedded model. While
            sigma > `switch`, all elements of a sample are then drawn together, with this covariance. None (default):
            each element is drawn on its own at every level.
        switch: Noise level sigma at and below which each element is drawn on its own, from the mixture. Only with
            `covariance`. Default: 0.75 `covariance.spread`, where the spread is the standard deviation along the first
            eigenvector.
        fit: Method that fits the mixture to the moments: "free" (default), "exact", "adan" or "gaussian".
        component: Scope of the choice between the two mixture components. "element": each element chooses its own.
            "sample": all elements of a sample share one. None (default): "sample" for fit="adan", else "element".
        weight: Weight of the first component, in (0, 1), not 1/2 (default 1/3).
        moments: Clipping of the moments of x_0 to the data range: "cumulant" (default), or "released", as in the
            released code.
        clip_pixel: Noise that the last step may leave in an image, as a mean absolute deviation in grey levels, of
            which [-1, 1] has 255 (default 2). None draws the last step like every other.
        clip: Data range (low, high) to which E[x_0|x] is clipped. None (default): no clipping.
        central: True if the model's second and third moments are central moments, about the first. Default: False,
            for raw moments.
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normal noise shaped like x. Default: the
            counter-based generator.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

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

    See [`ERSDE`][gms_fast.solvers.ERSDE].

    Args:
        model: Callable `model(x, sigma, **extra_args)`, where sigma is (B,). It returns E[x_0|x] for
            x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, floating point. It is not modified.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. If the last one is 0, the model's last E[x_0|x] is returned.
        extra_args: Keyword arguments for the model. Its entry "seed", if any, also seeds the noise: an integer, or one
            per sample.
        callback: Called before each step with a dict: the state "x", the step index "i", its level "sigma", the level
            "sigma_hat" at which the model was called, and E[x_0|x] as "denoised".
        disable: Switch of the progress bar. True: no bar. False: a bar. None (default): a bar only on a terminal.
        noise_scaler: Noise scale function phi of the noise level sigma/alpha, for float64 tensors, or its name in
            [`ERSDE`][gms_fast.solvers.ERSDE]. Default: "er_sde_4".
        max_stage: Order of the solver, 1, 2 or 3 (default).
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normal noise shaped like x. Default: the
            counter-based generator.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

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

    See [`DPMSolverPP`][gms_fast.solvers.DPMSolverPP].

    Args:
        model: Callable `model(x, sigma, **extra_args)`, where sigma is (B,). It returns E[x_0|x] for
            x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, floating point. It is not modified.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. If the last one is 0, the model's last E[x_0|x] is returned.
        extra_args: Keyword arguments for the model. Its entry "seed", if any, also seeds the noise: an integer, or one
            per sample.
        callback: Called before each step with a dict: the state "x", the step index "i", its level "sigma", the level
            "sigma_hat" at which the model was called, and E[x_0|x] as "denoised".
        disable: Switch of the progress bar. True: no bar. False: a bar. None (default): a bar only on a terminal.
        s_noise: Accepted for a common signature, but without effect: this solver draws no noise.
        noise_sampler: Accepted for a common signature, but without effect: this solver draws no noise.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

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

    See [`DPMSolverPP`][gms_fast.solvers.DPMSolverPP].

    Args:
        model: Callable `model(x, sigma, **extra_args)`, where sigma is (B,). It returns E[x_0|x] for
            x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, floating point. It is not modified.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. If the last one is 0, the model's last E[x_0|x] is returned.
        extra_args: Keyword arguments for the model. Its entry "seed", if any, also seeds the noise: an integer, or one
            per sample.
        callback: Called before each step with a dict: the state "x", the step index "i", its level "sigma", the level
            "sigma_hat" at which the model was called, and E[x_0|x] as "denoised".
        disable: Switch of the progress bar. True: no bar. False: a bar. None (default): a bar only on a terminal.
        eta: Amount of noise >= 0. 0: none, the probability flow. 1 (default): that of the reverse SDE.
        solver_type: Form of the second-order term, "midpoint" (default) or "heun".
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normal noise shaped like x. Default: the
            counter-based generator.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

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
    """Sample with SDE-DPM-Solver++(3M), in the form of k-diffusion.

    See [`DPMSolverPP`][gms_fast.solvers.DPMSolverPP].

    Args:
        model: Callable `model(x, sigma, **extra_args)`, where sigma is (B,). It returns E[x_0|x] for
            x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, floating point. It is not modified.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. If the last one is 0, the model's last E[x_0|x] is returned.
        extra_args: Keyword arguments for the model. Its entry "seed", if any, also seeds the noise: an integer, or one
            per sample.
        callback: Called before each step with a dict: the state "x", the step index "i", its level "sigma", the level
            "sigma_hat" at which the model was called, and E[x_0|x] as "denoised".
        disable: Switch of the progress bar. True: no bar. False: a bar. None (default): a bar only on a terminal.
        eta: Amount of noise >= 0. 0: none, the probability flow. 1 (default): that of the reverse SDE.
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normal noise shaped like x. Default: the
            counter-based generator.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

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

    The order falls to 1 in the last steps. See [`UniPC`][gms_fast.solvers.UniPC].

    Args:
        model: Callable `model(x, sigma, **extra_args)`, where sigma is (B,). It returns E[x_0|x] for
            x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, floating point. It is not modified.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. If the last one is 0, the model's last E[x_0|x] is returned.
        extra_args: Keyword arguments for the model. Its entry "seed", if any, also seeds the noise: an integer, or one
            per sample.
        callback: Called before each step with a dict: the state "x", the step index "i", its level "sigma", the level
            "sigma_hat" at which the model was called, and E[x_0|x] as "denoised".
        disable: Switch of the progress bar. True: no bar. False: a bar. None (default): a bar only on a terminal.
        variant: Function B(h) of the step size h in log(alpha/sigma). "bh1" (default): B = h. "bh2": B = 1 - e^{-h}.
        order: Order of the predictor, 1 to 4 (default 3).
        s_noise: Accepted for a common signature, but without effect: this solver draws no noise.
        noise_sampler: Accepted for a common signature, but without effect: this solver draws no noise.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

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
    no network evaluation. See [`Teleport`][gms_fast.solvers.Teleport].

    Args:
        model: Callable `model(x, sigma, **extra_args)`, where sigma is (B,). It returns E[x_0|x] for
            x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, floating point. It is not modified.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. If the last one is 0, the model's last E[x_0|x] is returned.
        extra_args: Keyword arguments for the model. Its entry "seed", if any, also seeds the noise: an integer, or one
            per sample.
        callback: Called before each step with a dict: the state "x", the step index "i", its level "sigma", the level
            "sigma_hat" at which the model was called, and E[x_0|x] as "denoised".
        disable: Switch of the progress bar. True: no bar. False: a bar. None (default): a bar only on a terminal.
        statistics: Gaussian statistics of the data, a file that holds them, or the name of an embedded model.
        until: Teleport level: noise level sigma/alpha >= 1 at which teleportation ends and `then` begins. Default:
            `then.reach` times `statistics.spread`, the standard deviation along the first eigenvector.
        skip: Fraction of the steps to skip, in (0, 1). Give it instead of `until`, not in addition.
        then: Solver for the remaining steps, or a solver string (default "dpm-solver++").
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normal noise shaped like x. Default: the
            counter-based generator.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

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

    The statistics hold for a fixed set of noise levels, their nodes. The model is called at the node nearest to each
    sigma. See [`DPMSolverV3`][gms_fast.solvers.DPMSolverV3].

    Args:
        model: Callable `model(x, sigma, **extra_args)`, where sigma is (B,). It returns E[x_0|x] for
            x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, floating point. It is not modified.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. If the last one is 0, the model's last E[x_0|x] is returned.
        extra_args: Keyword arguments for the model. Its entry "seed", if any, also seeds the noise: an integer, or one
            per sample.
        callback: Called before each step with a dict: the state "x", the step index "i", its level "sigma", the level
            "sigma_hat" at which the model was called, and E[x_0|x] as "denoised".
        disable: Switch of the progress bar. True: no bar. False: a bar. None (default): a bar only on a terminal.
        statistics: Empirical model statistics of this network, a file that holds them, or the name of an embedded
            model.
        order: Order of the predictor, from 1 to 8, or to 7 with corrector="next" (default 3).
        corrector: Correction of the state after each network evaluation, without further evaluations. None: no
            correction. "same": the order of the last predictor. "next" (default): one order more.
        pseudo: True computes the predictor's derivatives from divided differences of more and more values (pseudo
            derivatives), which is more stable in few steps. Default: False.
        lower_order_final: True (default) lowers the order in the last steps, down to 2 and 1.
        trust: Smallest lambda = log(alpha/sigma) at which the statistics are used. Noisier steps use those of data
            prediction, l = 1 and s = b = 0. None (default): the statistics are used at every level.
        s_noise: Accepted for a common signature, but without effect: this solver draws no noise.
        noise_sampler: Accepted for a common signature, but without effect: this solver draws no noise.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

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
    """Sample with Euler's method for the probability flow, which is DDIM, with optional churn.

    Churn adds noise before a step, which then starts at a higher noise level. See [`Euler`][gms_fast.solvers.Euler].

    Args:
        model: Callable `model(x, sigma, **extra_args)`, where sigma is (B,). It returns E[x_0|x] for
            x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, floating point. It is not modified.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. If the last one is 0, the model's last E[x_0|x] is returned.
        extra_args: Keyword arguments for the model. Its entry "seed", if any, also seeds the noise: an integer, or one
            per sample.
        callback: Called before each step with a dict: the state "x", the step index "i", its level "sigma", the level
            "sigma_hat" at which the model was called, and E[x_0|x] as "denoised".
        disable: Switch of the progress bar. True: no bar. False: a bar. None (default): a bar only on a terminal.
        s_churn: Total amount of churn over all K steps, >= 0. Each step raises its level by the factor 1 + gamma with
            gamma = min(s_churn/K, sqrt(2) - 1). Default: 0, no churn.
        s_tmin: Lowest noise level at which noise is added (default 0).
        s_tmax: Highest noise level at which noise is added (default infinity).
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normal noise shaped like x. Default: the
            counter-based generator.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

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

    See [`DDIM`][gms_fast.solvers.DDIM].

    Args:
        model: Callable `model(x, sigma, **extra_args)`, where sigma is (B,). It returns E[x_0|x] for
            x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, floating point. It is not modified.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. If the last one is 0, the model's last E[x_0|x] is returned.
        extra_args: Keyword arguments for the model. Its entry "seed", if any, also seeds the noise: an integer, or one
            per sample.
        callback: Called before each step with a dict: the state "x", the step index "i", its level "sigma", the level
            "sigma_hat" at which the model was called, and E[x_0|x] as "denoised".
        disable: Switch of the progress bar. True: no bar. False: a bar. None (default): a bar only on a terminal.
        eta: Amount of noise in [0, 1]. 0: none, as in `sample_euler`. 1 (default): that of DDPM.
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normal noise shaped like x. Default: the
            counter-based generator.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

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
    """Sample with Heun's method, of order 2, for the probability flow, with optional churn.

    Each step costs two network evaluations; a last step to sigma = 0 costs one. Churn adds noise before a step, which
    then starts at a higher noise level. See [`Heun`][gms_fast.solvers.Heun].

    Args:
        model: Callable `model(x, sigma, **extra_args)`, where sigma is (B,). It returns E[x_0|x] for
            x = x_0 + sigma eps.
        x: State (B, *) at noise level `sigmas[0]`, floating point. It is not modified.
        sigmas: Noise levels (K+1,), falling, finite, >= 0. If the last one is 0, the model's last E[x_0|x] is returned.
        extra_args: Keyword arguments for the model. Its entry "seed", if any, also seeds the noise: an integer, or one
            per sample.
        callback: Called before each step with a dict: the state "x", the step index "i", its level "sigma", the level
            "sigma_hat" at which the model was called, and E[x_0|x] as "denoised".
        disable: Switch of the progress bar. True: no bar. False: a bar. None (default): a bar only on a terminal.
        s_churn: Total amount of churn over all K steps, >= 0. Each step raises its level by the factor 1 + gamma with
            gamma = min(s_churn/K, sqrt(2) - 1). Default: 0, no churn.
        s_tmin: Lowest noise level at which noise is added (default 0).
        s_tmax: Highest noise level at which noise is added (default infinity).
        s_noise: Factor >= 0 by which the noise is multiplied (default 1).
        noise_sampler: Callable `(sigma, sigma_next)` that returns standard normal noise shaped like x. Default: the
            counter-based generator.

    Returns:
        Tensor (B, *): the sample, in the dtype of x.

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
