"""Errors of `sample`: bad arguments before any evaluation, bad outputs with their step."""

import math
import warnings
from pathlib import Path

import pytest
import torch
from toys import Model, polynomial

import gms_fast
from gms_fast import NoiseMoments, schedules, solvers
from gms_fast.models import GaussianMixture1D

pytestmark = pytest.mark.usefixtures("one_thread")

NAN = math.nan
BEFORE_ANY_CALL = {
    "steps 0": ({"steps": 0}, ValueError, "steps must be at least 1: got 0"),
    "steps -3": ({"steps": -3}, ValueError, "steps must be at least 1: got -3"),
    "steps 1001": ({"steps": 1001}, ValueError, "steps must be at most 1000 .* got 1001"),
    "steps 2.5": ({"steps": 2.5}, TypeError, "steps must be an integer: got 2.5"),
    "steps True": ({"steps": True}, TypeError, "steps must be an integer: got True"),
    "solver": ({"solver": "gmm"}, ValueError, "solver must be a Solver or one of gms, ddpm, .* got 'gmm'"),
    "schedule": ({"schedule": "sigmoid"}, ValueError, "schedule must be one of cosine, edm, .*: got 'sigmoid'"),
    "prediction": ({"prediction": "eps"}, ValueError, "prediction must be one of noise, x0, v.*: got 'eps'"),
    "n": ({"n": -1}, ValueError, "n must be a non-negative integer: got -1"),
    "n 1.5": ({"n": 1.5}, TypeError, "n must be an integer: got 1.5"),
    "too many seeds": ({"seed": [1, 2, 3]}, ValueError, "seed must be one integer or one per sample, 2 of them: got 3"),
    "seeds with x_T": ({"seed": [1], "x_T": torch.zeros(2, 4)}, ValueError, "seed must be .* 2 of them: got 1"),
    "seed 0.5": ({"seed": 0.5}, TypeError, "seed must be an integer.* got 0.5"),
    "seeds 0.5": ({"seed": [1, 0.5]}, TypeError, "seed must be an integer.* got 0.5"),
    "seed range": ({"seed": 1 << 64}, ValueError, "seed must fit in 64 bits"),
    "sample_offset": ({"sample_offset": -1}, ValueError, "sample_offset must lie in .* got -1"),
    "x_T": ({"x_T": torch.zeros(2, 3), "shape": (4,)}, ValueError, r"x_T must be \(n, 4\): got \(2, 3\)"),
    "dtype": ({"dtype": torch.int32}, TypeError, "dtype must be float32.* got torch.int32"),
    "clip reversed": ({"clip": (1, -1)}, ValueError, r"clip must be \(lo, hi\) with lo < hi, or None: got \(1, -1\)"),
    "clip of one": ({"clip": (0,)}, ValueError, r"clip must be .* got \(0,\)"),
    "clip NaN": ({"clip": (NAN, 1)}, ValueError, r"clip must be .* got \(nan, 1\)"),
    "no time": ({"timesteps": []}, ValueError, r"timesteps must be one or more .* got \[\]"),
    "step_offset": ({"step_offset": -1}, ValueError, r"step_offset must lie in .* got -1"),
    "step_offset 0.5": ({"step_offset": 0.5}, TypeError, "step_offset must be an integer: got 0.5"),
    "batch_size": ({"batch_size": 0}, ValueError, "batch_size must be at least 1, or None: got 0"),
    "denoise": ({"denoise": "yes"}, TypeError, "denoise must be True, False or None: got 'yes'"),
    "condition": ({"condition": torch.zeros(2)}, TypeError, "condition must be a dict of .* got Tensor"),
    "clip by another name": ({"clip": "data"}, ValueError, r"clip must be \(lo, hi\).* got 'data'"),
    "rising times": ({"timesteps": [0, 5]}, ValueError, "timesteps must be .* strictly decreasing times"),
    "times outside": ({"timesteps": [1000, 0]}, ValueError, r"times must lie in \[0, 999\]"),
    "times between": ({"timesteps": [5.5, 0]}, ValueError, "timesteps must be integers"),
}


@pytest.mark.parametrize("case", BEFORE_ANY_CALL)
def test_bad_argument_is_named_before_the_model_is_called(case):
    options, error, message = BEFORE_ANY_CALL[case]
    model = Model()
    with pytest.raises(error, match=message):
        gms_fast.sample(model, **{"solver": "ddim", "n": 2} | options)
    assert model.calls == 0


def test_model_without_what_is_needed_is_refused_before_it_is_called():
    with pytest.raises(TypeError, match=r"model must be callable as model\(x, t\): got int"):
        gms_fast.sample(3)
    for missing in ("schedule", "sample_shape"):
        model = Model(**{missing: None})
        with pytest.raises(ValueError, match=f"must be given: this model has no attribute `{missing}`"):
            gms_fast.sample(model, solver="ddim")
        assert model.calls == 0
    model = Model(moments="cumulants")
    with pytest.raises(ValueError, match=r"model\.moments must be .* got 'cumulants'"):
        gms_fast.sample(model)
    assert model.calls == 0


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize(("moment", "step", "t"), [("e1", 0, 999), ("e2", 2, 166), ("e3", 1, 367), ("e1", 3, 0)])
def test_bad_network_output_is_named_with_its_step(moment, step, t, bad):
    def model(x, time):
        moments = polynomial(0 * x, time)._asdict()
        if float(time[0]) == t:
            moments[moment][-1, -1] = bad
        return NoiseMoments(**moments)

    with pytest.raises(ValueError, match=rf"NaN or infinity in {moment} at step {step} \(t = {t}\)"):
        gms_fast.sample(Model(model), 3, n=2)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda x: x[:, :1], ValueError, r"output must be shaped like x, \(2, 4\): got \(2, 1\)"),
        (lambda x: NoiseMoments(x, x[:1], x), ValueError, r"e2 must be shaped like x, \(2, 4\): got \(1, 4\)"),
        (lambda x: (x, x), TypeError, r"model must return a tensor or NoiseMoments\(e1, e2, e3\): got tuple"),
        (lambda x: {"sample": x}, TypeError, "model must return a tensor or NoiseMoments.* got dict"),
        (lambda x: None, TypeError, "model must return a tensor or NoiseMoments.* got NoneType"),
    ],
)
def test_other_network_output_is_refused(output, error, message):
    model = Model(lambda x, t: output(x))
    with pytest.raises(error, match=message):
        gms_fast.sample(model, n=2)
    assert model.calls == 1


MODEL = GaussianMixture1D([1.0], [0.0], [0.1], sample_shape=(4,))
X = torch.zeros(2, 4)


BAD_CALLS = {
    "x_T holds NaN": ({"x_T": X * float("nan")}, ValueError, "x_T must be finite"),
    "x_T of integers": ({"x_T": X.long()}, TypeError, "x_T must be a floating-point tensor"),
    "x_T a list": ({"x_T": [0.0]}, TypeError, "x_T must be a floating-point tensor"),
    "noise not callable": ({"noise": X}, TypeError, "noise must be callable"),
    "noise of another shape": ({"noise": lambda i: X[:1], "solver": solvers.DDIM(eta=1.0)}, ValueError, "noise z"),
    "callback not callable": ({"callback": 3}, TypeError, "callback must be callable"),
    "offset with x_T": ({"x_T": X, "sample_offset": -1}, ValueError, "sample_offset must lie in"),
    "clip a number": ({"clip": 1.0}, ValueError, "clip must be"),
    "clip a word": ({"clip": "ab"}, ValueError, "clip must be"),
    "timesteps a number": ({"timesteps": 5}, TypeError, "timesteps must be a sequence"),
    "timesteps NaN": ({"timesteps": [float("nan"), 0]}, ValueError, "timesteps must be integers"),
    "solver a list": ({"solver": ["ddim"]}, ValueError, "solver must be"),
    "schedule a number": ({"schedule": 3}, TypeError, "schedule must be"),
    "shape a number": ({"shape": 4}, ValueError, "shape"),
    "shape negative": ({"shape": (2, -1)}, ValueError, "shape"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_sample_names_the_argument(case):
    options, error, message = BAD_CALLS[case]
    with pytest.raises(error, match=message):
        gms_fast.sample(MODEL, 3, **({"n": 2} | options))


def test_model_without_e1_is_refused():
    model = lambda x, t: NoiseMoments(None, x, x)  # noqa: E731
    with pytest.raises(TypeError, match="model must return e1"):
        gms_fast.sample(model, 3, shape=(4,), schedule="linear")


def own(name):
    """Another schedule that translates to the times of the model's own."""

    class Translated(schedules.VPContinuousCosine):
        def network_time(self, t):
            return MODEL.schedule.network_time(MODEL.schedule.inverse_log_snr(self.log_snr(t)))

    return Translated() if name == "translated" else name


@pytest.mark.parametrize(
    ("schedule", "warned"),
    [("linear", False), ("vp", False), ("translated", False), ("cosine", True), ("edm", True)],
)
def test_schedule_of_other_levels_at_the_network_times_is_warned_of(schedule, warned):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        gms_fast.sample(MODEL, 5, n=2, solver="er-sde", schedule=own(schedule))
    said = [str(w.message) for w in found if "model.schedule has" in str(w.message)]
    assert len(said) == warned
    if warned:
        assert said[0].startswith("schedule calls the network at time")
        assert next(Path(w.filename).name for w in found if str(w.message) == said[0]) == Path(__file__).name


def test_times_that_the_model_has_not_are_warned_of():
    model = Model(sample_shape=(4,), schedule=schedules.VPLinear(T=50))
    with pytest.warns(UserWarning, match=r"at times that model\.schedule does not have \(times must lie in \[0, 49\]"):
        gms_fast.sample(model, 5, n=2, solver="er-sde", schedule=schedules.VPLinear(T=1000))
