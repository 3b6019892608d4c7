"""Schedulers of one solver each, with the solver's options as keywords."""

from gms_fast.integrations.diffusers.schedulers import SolverScheduler


class GMSScheduler(SolverScheduler):
    """Gaussian Mixture Solver as a scheduler of diffusers.

    The network must return three noise moments in 3C channels. With `covariance` and `switch=0` one output is enough.
    See [`GMS`][gms_fast.solvers.GMS]. All keywords of [`SolverScheduler`][gms_fast.SolverScheduler] except `solver`
    work too.

    Args:
        fit: Fit of the mixture: "free" (default), "exact", "adan" or "gaussian".
        component: "element" or "sample": scope of the draw of a mixture component; by default "element", for fit="adan"
            "sample".
        weight: Weight of the first component, in (0, 1), not 1/2.
        moments: "cumulant" (default) or "released": propagation of the third moment.
        covariance: File of Gaussian statistics of the data, or the name of an embedded model.
        switch: Noise level sigma/alpha above which elements are drawn jointly with `covariance`.
        iterations: Number of steps of fit="adan".
        lr: Learning rate of fit="adan".
        eps: Constant in the denominator of fit="adan".
        clip_pixel: Grey levels of noise that the last step may leave, by default 2.
        clip_sample: True clips E[x_0|x_t], as pixel data need.

    Raises:
        ValueError: If an option has a wrong value, or `thresholding` is set.
        TypeError: If a keyword is unknown.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> pipe = gms_fast.GMSPipeline.of(model, gms_fast.GMSScheduler, fit="exact")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe(batch_size=2, num_inference_steps=5, output_type="pt").images.shape
        torch.Size([2, 1, 8, 8])

    References:
        Guo et al. 2023, arXiv 2311.00941.
    """

    _solver = "gms"


class ERSDEScheduler(SolverScheduler):
    """ER-SDE-Solver as a scheduler of diffusers.

    See [`ERSDE`][gms_fast.solvers.ERSDE]. All keywords of [`SolverScheduler`][gms_fast.SolverScheduler] except `solver`
    work too.

    Args:
        order: Order of the solver: 1, 2 or 3.
        noise_scale: Name of the noise-scaling function phi, such as "er_sde_4" (default) or "ode".
        quadrature: "released", a Riemann sum, or "exact".
        points: Number of points of the released quadrature.
        variance_clip: Variance of x/alpha below which no noise is drawn.

    Raises:
        ValueError: If an option has a wrong value.
        TypeError: If a keyword is unknown.

    Examples:
        >>> import diffusers
        >>> other = diffusers.DDIMScheduler(beta_schedule="scaled_linear")
        >>> scheduler = gms_fast.ERSDEScheduler.from_config(other.config, order=2)
        >>> scheduler.set_timesteps(5)
        >>> len(scheduler.timesteps), scheduler.config.beta_schedule
        (5, 'scaled_linear')

    References:
        Cui et al. 2023, arXiv 2309.06169.
    """

    _solver = "er-sde"


class DPMSolverV3Scheduler(SolverScheduler):
    """DPM-Solver-v3 as a scheduler of diffusers.

    See [`DPMSolverV3`][gms_fast.solvers.DPMSolverV3]. All keywords of [`SolverScheduler`][gms_fast.SolverScheduler]
    except `solver` work too.

    Args:
        statistics: File of the network's empirical model statistics, or the name of an embedded model.
        order: Order of the predictor >= 1.
        corrector: None, "same" (order of the last predictor) or "next" (one order more).
        pseudo: True takes pseudo derivatives in the predictor.
        lower_order_final: True ends with orders .., 2, 1.
        half: True or "released" corrects in one half of time only.
        trust: lambda = log(alpha/sigma) from which on the statistics are used.
        spacing: Time grid of the solver, used with `grid="solver"`.

    Raises:
        ValueError: If an option has a wrong value, or `statistics` is missing.
        TypeError: If a keyword is unknown.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> pipe = gms_fast.GMSPipeline.of(model, gms_fast.DPMSolverV3Scheduler, statistics="digits")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe(batch_size=2, num_inference_steps=5, output_type="pt").images.shape
        torch.Size([2, 1, 8, 8])

    References:
        Zheng et al. 2023, arXiv 2310.13268.
    """

    _solver = "dpm-solver-v3"


class UniPCScheduler(SolverScheduler):
    """UniPC as a scheduler of diffusers.

    See [`UniPC`][gms_fast.solvers.UniPC]. All keywords of [`SolverScheduler`][gms_fast.SolverScheduler] except `solver`
    work too.

    Args:
        order: Order of the predictor, 1 .. 4; by default `solver_order`.
        variant: "bh1" or "bh2", the function B(h); by default `solver_type`.
        corrector: False uses the predictor alone.
        lower_order_final: True ends with orders .., 2, 1.
        disable_corrector: Steps whose end is not corrected, 0 being the first.

    Raises:
        ValueError: If an option has a wrong value, or `predict_x0` is False.
        TypeError: If a keyword is unknown.

    Examples:
        >>> scheduler = gms_fast.UniPCScheduler(order=3, beta_schedule="linear")
        >>> scheduler.set_timesteps(5)
        >>> x = torch.randn(2, 3, 8, 8)
        >>> scheduler.step(torch.zeros_like(x), scheduler.timesteps[0], x).prev_sample.shape
        torch.Size([2, 3, 8, 8])

    References:
        Zhao et al. 2023, arXiv 2302.04867.
    """

    _solver = "unipc"


class GGDMScheduler(SolverScheduler):
    """GGDM, a learned table of steps, as a scheduler of diffusers.

    The times are those of the table. See [`GGDM`][gms_fast.solvers.GGDM]. All keywords of
    [`SolverScheduler`][gms_fast.SolverScheduler] except `solver` work too.

    Args:
        table: File of the table, or an embedded one such as "mnist/5".

    Raises:
        ValueError: If `table` is missing, or the number of steps is not the table's.
        TypeError: If a keyword is unknown.

    Examples:
        >>> model = gms_fast.load("mnist")
        >>> pipe = gms_fast.GMSPipeline.of(model, gms_fast.GGDMScheduler, table="mnist/5")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe(batch_size=1, num_inference_steps=5, output_type="pt").images.shape
        torch.Size([1, 1, 28, 28])

    References:
        Watson et al. 2022, arXiv 2202.05830.
    """

    _solver = "ggdm"


class TeleportScheduler(SolverScheduler):
    """Gaussian teleportation as a scheduler of diffusers: the noisiest times cost no call.

    The jump happens in `scale_model_input`, before the first network call, so the pipeline must call that method. See
    [`Teleport`][gms_fast.solvers.Teleport]. All keywords of [`SolverScheduler`][gms_fast.SolverScheduler] except
    `solver` work too.

    Args:
        statistics: File of Gaussian statistics of the data, or the name of an embedded model.
        until: Noise level sigma/alpha >= 1 where the network takes over.
        then: Text of the solver that follows (default "er-sde").
        spacing: Time grid of the solver, used with `grid="solver"`.
        direct: Must be False, because the pipeline draws the first state.
        skip: Share of the steps to skip, in (0, 1), instead of `until`.

    Raises:
        ValueError: If an option has a wrong value, or `statistics` is missing.
        TypeError: If a keyword is unknown.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> pipe = gms_fast.GMSPipeline.of(model, gms_fast.TeleportScheduler, statistics="digits", then="ddim")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe(batch_size=2, num_inference_steps=3, output_type="pt").images.shape
        torch.Size([2, 1, 8, 8])

    References:
        Wang & Vastola 2024, arXiv 2412.09726.
    """

    _solver = "teleport"
