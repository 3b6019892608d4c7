"""What `sample` refuses: bad arguments before the model is called, bad network output with its step."""

import math

import pytest
import torch
from toys import Model, polynomial

import gms_fast
from gms_fast import NoiseMoments, solvers

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
    "condition": ({"condition": torch.zeros(2)}, TypeError, "condition must be a dict of keywords .* got Tensor"),
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


@pytest.mark.parametrize("given", [1, 2])
def test_gms_says_how_to_get_the_missing_moments(given):
    model = Model(polynomial if given == 3 else lambda x, t: x if given == 1 else NoiseMoments(x, x))
    with pytest.raises(ValueError, match=f"3 moments for GMS, but gives {given}: .*train_moment_heads.* ddim"):
        gms_fast.sample(model)
    assert model.calls == 1
    if given == 1:
        with pytest.raises(ValueError, match="2 moments for SNDDPM, but gives 1"):
            gms_fast.sample(model, solver="sn-ddpm")


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solvers.GMS(fit="best"), "fit must be one of exact, free, adan, gaussian: got 'best'"),
        (lambda: solvers.GMS(component="image"), "component must be one of sample, element: got 'image'"),
        (lambda: solvers.GMS(moments="raw"), "moments must be one of cumulant, released: got 'raw'"),
        (lambda: solvers.GMS(weight=0.5), r"weight must lie in \(0, 1\) and not be 1/2: got 0.5"),
        (lambda: solvers.GMS(weight=1.0), "weight must lie in .* got 1.0"),
        (lambda: solvers.DDIM(eta=1.5), r"eta must lie in \[0, 1\]: got 1.5"),
    ],
)
def test_solver_refuses_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_solvers_are_frozen_and_built_by_name():
    assert {"gms", "ddpm", "sn-ddpm", "ddim"} <= set(solvers.names())
    for name in solvers.names():
        assert isinstance(solvers.build(name), solvers.Solver)
    assert solvers.build("gms") == solvers.GMS()
    with pytest.raises(AttributeError):
        solvers.GMS().fit = "free"
    with pytest.raises(TypeError):
        solvers.GMS("exact")
