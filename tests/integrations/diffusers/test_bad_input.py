"""Wrong arguments in a pipeline: an error names each one before anything is computed."""

import subprocess
import sys

import pytest
import torch
from scheduler_loops import normals

diffusers = pytest.importorskip("diffusers")
from gms_fast import DPMSolverV3Scheduler, ERSDEScheduler, GMSScheduler, SolverScheduler, TeleportScheduler  # noqa: E402
from gms_fast.integrations.diffusers import version  # noqa: E402
from gms_fast.integrations.diffusers.seeds import seeds  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
X = normals(2, 3, 8, 8)


def ready(kind=ERSDEScheduler, **options):
    scheduler = kind(**options)
    scheduler.set_timesteps(5)
    return scheduler


def step(scheduler, output=X, **options):
    return scheduler.step(output, scheduler.timesteps[0], X, **options)


REFUSED = {
    "not set": (lambda: step(ERSDEScheduler()), "set_timesteps must be called before the scheduler is used"),
    "unknown word": (lambda: ERSDEScheduler(bogus=3), "ERSDEScheduler got unexpected keywords bogus: it accepts order"),
    "unknown solver": (lambda: SolverScheduler(solver="foo"), "solver must be a Solver or one of .* got 'foo'"),
    "bad option": (lambda: ERSDEScheduler(order=7), "order must be one of 1, 2, 3: got 7"),
    "no table": (DPMSolverV3Scheduler, "solver dpm-solver-v3 needs statistics="),
    "table that is nowhere": (lambda: TeleportScheduler(statistics="gone", until=5), "no statistics at gone"),
    "random start of a teleport": (
        lambda: TeleportScheduler(statistics="mnist", until=5, direct=True),
        "direct must be False in a scheduler",
    ),
    "statistics of another schedule": (
        lambda: ready(DPMSolverV3Scheduler, statistics="mnist", beta_schedule="scaled_linear"),
        "statistics were measured for schedule",
    ),
    "statistics of another shape": (
        lambda: ready(TeleportScheduler, statistics="mnist", until=5).scale_model_input(X),
        r"statistics must be of samples of shape \(3, 8, 8\): got \(1, 28, 28\)",
    ),
    "noise prediction": (
        lambda: SolverScheduler(solver="dpm-solver++", algorithm_type="dpmsolver"),
        "algorithm_type must be .*, which predict x_0, for dpm-solver.*: got 'dpmsolver'",
    ),
    "UniPC of the noise": (lambda: SolverScheduler(solver="unipc", predict_x0=False), "predict_x0 must be True"),
    "large variance": (
        lambda: SolverScheduler(solver="ddpm", variance_type="fixed_large"),
        "variance_type must be fixed_small",
    ),
    "moments": (
        lambda: GMSScheduler(network_moments="cooked"),
        "network_moments must be raw or central: got 'cooked'",
    ),
    "learned variance of DDPM": (
        lambda: SolverScheduler(solver="ddpm", variance_type="learned_range"),
        "variance_type must be fixed_small, .* for ddpm: got 'learned_range'",
    ),
    "last step of order 1": (
        lambda: SolverScheduler(solver="dpm-solver++", euler_at_final=True, final_sigmas_type="sigma_min"),
        "euler_at_final must be False with final_sigmas_type sigma_min for dpm-solver",
    ),
    "noise of flow matching": (
        lambda: SolverScheduler(solver="ddim", prediction_type="flow_prediction", stochastic_sampling=True),
        "stochastic_sampling must be False .*ddim:eta=1 draw noise.* got True",
    ),
    "state of another scale at the end": (
        lambda: ready(levels="EulerDiscreteScheduler", final_sigmas_type="sigma_min"),
        "final_sigmas_type must be zero, .* with the levels of EulerDiscreteScheduler",
    ),
    "count of other times": (
        lambda: ERSDEScheduler().set_timesteps(5, timesteps=[900, 3]),
        "num_inference_steps must be None together with timesteps: got 5",
    ),
    "misspelled option": (
        lambda: ERSDEScheduler.from_config(ERSDEScheduler().config, ordr=2),
        "ERSDEScheduler got unexpected keywords ordr",
    ),
    "range of other levels": (
        lambda: ready(GMSScheduler, variance_type="learned_range", levels="EDMEulerScheduler"),
        "schedule must be a VP with the training betas for a learned variance",
    ),
    "other shape in a run": (
        lambda: (s := ready(), step(s), s.step(X[:1], 1, X[:1])),
        "sample must keep its shape",
    ),
    "churn": (lambda: SolverScheduler(solver="heun:churn=4"), "churn must be 0 in a scheduler"),
    "spacing": (
        lambda: ERSDEScheduler(timestep_spacing="odd"),
        "timestep_spacing must be one of linspace, .* got 'odd'",
    ),
    "one moment for GMS": (
        lambda: step(ready(GMSScheduler)),
        "model must return NoiseMoments with 3 moments for GMS, but returns 1: train heads with",
    ),
    "channels": (
        lambda: step(ready(), X.repeat(1, 4, 1, 1)),
        "model_output must be shaped like sample, .* 2 or 3 times",
    ),
    "moments of v": (
        lambda: step(ready(GMSScheduler, prediction_type="v_prediction"), X.repeat(1, 3, 1, 1)),
        "prediction_type must be epsilon if model_output has 3 times",
    ),
    "a learned variance that is not a range": (
        lambda: step(ready(SolverScheduler, solver="sn-ddpm", variance_type="learned"), X.repeat(1, 2, 1, 1)),
        'variance_type must be "learned_range"',
    ),
    "thresholding of moments": (
        lambda: step(ready(GMSScheduler, thresholding=True), X.repeat(1, 3, 1, 1)),
        "thresholding must be False for GMS, which uses noise moments: use clip_sample instead",
    ),
    "nothing said": (
        lambda: ERSDEScheduler().set_timesteps(),
        "exactly one of num_inference_steps, timesteps and sigmas must be given",
    ),
    "both said": (lambda: ERSDEScheduler().set_timesteps(timesteps=[3], sigmas=[1.0]), "exactly one of"),
    "no step": (lambda: ERSDEScheduler().set_timesteps(0), "num_inference_steps must be at least 1: got 0"),
    "times that rise": (lambda: ERSDEScheduler().set_timesteps(timesteps=[3, 9]), "timesteps must decrease"),
    "begin": (lambda: (s := ready(), s.set_begin_index(9), step(s)), r"begin_index must lie in \[0, 5\): got 9"),
    "too few generators": (
        lambda: step(ready(), generator=[torch.Generator()]),
        "generator must be a single one or a list of 2: got a list of 1",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        call()


def test_generator_of_another_device_is_refused():
    class OnGpu(torch.Generator):
        device = torch.device("cuda:0")

    with pytest.raises(ValueError, match="generator must be on cpu, like the sample, or on the CPU: got one on cuda:0"):
        seeds(OnGpu(), X)


@pytest.mark.parametrize("found", ["0.30.3", None])
def test_version_that_is_needed_is_named(monkeypatch, found):
    def installed(name):
        if found is None:
            raise version.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(version, "version", installed)
    got = "it is not installed" if found is None else "got 0.30.3"
    with pytest.raises(ImportError, match=f"diffusers must be 0.31 or later .*: {got}"):
        version.check()


def test_package_without_diffusers_says_so_only_when_it_is_asked():
    """Hide diffusers behind an empty folder, as if it were not installed."""
    code = "import sys; sys.modules['diffusers'] = None; import gms_fast, gms_fast.sampling, gms_fast.models; "
    code += (
        "import gms_fast.cli; gms_fast.sample; gms_fast.schedules.from_diffusers; print('fine'); gms_fast.GMSScheduler"
    )
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "fine"
    assert "ModuleNotFoundError" in run.stderr or "ImportError" in run.stderr
