"""Schedulers for one solver each, with the options of the solver as keywords."""

from gms_fast.integrations.diffusers.schedulers import SolverScheduler


class GMSScheduler(SolverScheduler):
    """Scheduler for diffusers that runs the Gaussian Mixture Solver.

    The network must return three noise moments, in 3C channels for a sample of C channels. With `covariance` and
    `switch=0`, a single output is enough. See [`GMS`][gms_fast.solvers.GMS] for the equations. You can also pass all
    keywords of [`SolverScheduler`][gms_fast.SolverScheduler] except `solver`.

    Args:
        fit: Method that fits the mixture to the moments: "free" (default), "exact", "adan" or "gaussian".
        component: Scope of the random choice between the two mixture components: "element" or "sample". The default is
            "sample" for fit="adan" and "element" otherwise.
        weight: Weight of the first component, in (0, 1) but not 1/2 (default 1/3).
        moments: How the moments of x_0 are clipped to the data range: "cumulant" (default) or "released".
        covariance: File with Gaussian statistics of the data, or the name of an embedded model.
        switch: Noise level sigma/alpha above which the elements of a sample are drawn jointly. Requires `covariance`.
        iterations: Number of iterations of fit="adan".
        lr: Learning rate of fit="adan".
        eps: Constant added to the denominator in fit="adan".
        clip_pixel: Upper bound on the mean absolute value of the noise that the last step adds to an image, in grey
            levels (default 2).
        clip_sample: If True, E[x_0|x_t] is clipped; pixel-space models need this.

    Raises:
        ValueError: If an option has an invalid value, or if `thresholding` is set.
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
    """Scheduler for diffusers that runs ER-SDE-Solver.

    See [`ERSDE`][gms_fast.solvers.ERSDE] for the equations. You can also pass all keywords of
    [`SolverScheduler`][gms_fast.SolverScheduler] except `solver`.

    Args:
        order: Order of the solver: 1, 2 or 3 (default).
        noise_scale: Name of the function phi that sets the amount of noise, such as "er_sde_4" (default) or "ode".
        quadrature: Rule for the integrals of 1/phi: "released" (default) for a Riemann sum, or "exact".
        points: Number of points of the Riemann sum (default 100).
        variance_clip: Threshold for the variance of the noise in x/alpha; steps below it draw no noise.

    Raises:
        ValueError: If an option has an invalid value.
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
    """Scheduler for diffusers that runs DPM-Solver-v3.

    See [`DPMSolverV3`][gms_fast.solvers.DPMSolverV3] for the equations. You can also pass all keywords of
    [`SolverScheduler`][gms_fast.SolverScheduler] except `solver`.

    Args:
        statistics: File with the empirical model statistics of the network, or the name of an embedded model. Required.
        order: Order of the predictor, >= 1 (default 3).
        corrector: None for no corrector, "same" for a corrector with the order of the preceding predictor, or "next"
            (default) for an order higher by one.
        pseudo: If True, the predictor uses pseudo derivatives (default False).
        lower_order_final: If True (default), the order decreases to 1 in the last steps.
        half: False (default) uses the corrector at all times. True uses it only at times t <= 1/2, and "released" only
            at times t > 1/2, where t runs from 0 (data) to 1 (noise).
        trust: Smallest lambda = log(alpha/sigma) at which the statistics are used.
        spacing: Time grid of the solver, which is used with `grid="solver"`.

    Raises:
        ValueError: If an option has an invalid value, or if `statistics` is missing.
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
    """Scheduler for diffusers that runs UniPC.

    See [`UniPC`][gms_fast.solvers.UniPC] for the equations. You can also pass all keywords of
    [`SolverScheduler`][gms_fast.SolverScheduler] except `solver`.

    Args:
        order: Order of the predictor, from 1 to 4. The default is the value of `solver_order`.
        variant: Function B(h): "bh1" or "bh2". The default is the value of `solver_type`.
        corrector: If False, the corrector is turned off and only the predictor runs (default True).
        lower_order_final: If True (default), the order decreases to 1 in the last steps.
        disable_corrector: Indices of the steps whose result is not corrected, counted from 0.

    Raises:
        ValueError: If an option has an invalid value, or if `predict_x0` is False.
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
    """Scheduler for diffusers that runs GGDM, a sampler with a learned table of coefficients.

    The table also fixes the times and the number of steps. See [`GGDM`][gms_fast.solvers.GGDM] for the equations. You
    can also pass all keywords of [`SolverScheduler`][gms_fast.SolverScheduler] except `solver`.

    Args:
        table: File with the table, or the name of an embedded table such as "mnist/5". Required.

    Raises:
        ValueError: If `table` is missing, or if the number of steps differs from that of the table.
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
    """Scheduler for diffusers that skips the noisiest times by Gaussian teleportation.

    The skipped times cost no network evaluations. The teleport takes place in `scale_model_input`, before the network
    is first called, so the pipeline must call that method. See [`Teleport`][gms_fast.solvers.Teleport] for the
    equations. You can also pass all keywords of [`SolverScheduler`][gms_fast.SolverScheduler] except `solver`.

    Args:
        statistics: File with Gaussian statistics of the data, or the name of an embedded model. Required.
        until: Noise level sigma/alpha >= 1 at which the teleport ends and `then` begins.
        then: Solver string of the solver for the remaining steps (default "er-sde").
        spacing: Time grid of the solver, which is used with `grid="solver"`.
        direct: Must be False, because the pipeline draws the first state.
        skip: Fraction of the steps to skip, in (0, 1), in place of `until`.

    Raises:
        ValueError: If an option has an invalid value, or if `statistics` is missing.
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
