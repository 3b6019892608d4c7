"""Arguments that the ops reject, each by its name."""

import math
from dataclasses import replace

import pytest
import torch
from op_inputs import STEP, gms_step

from gms_fast import ops

NAN = math.nan
X = torch.rand(2, 3)
REFUSALS = {
    "var shape": (
        lambda: ops.fit_mixture(X, X[:1], X),
        ValueError,
        r"var must match mean: got \(1, 3\), want \(2, 3\)",
    ),
    "third shape": (lambda: ops.sample_mixture(X, X, X[:, :2]), ValueError, r"third must match mean: got \(2, 2\)"),
    "e1 shape": (lambda: gms_step(X, X[0], X, X), ValueError, r"e1 must match x: got \(3,\)"),
    "e3 shape": (lambda: gms_step(X, X, X, X[:1]), ValueError, r"e3 must match x: got \(1, 3\)"),
    "integers": (lambda: ops.fit_mixture(X.int(), X, X), TypeError, "mean must be float32.* got torch.int32"),
    "complex": (lambda: gms_step(X, X, X + 0j, X), TypeError, "e2 must be float32.* got torch.complex64"),
    "scalar": (lambda: ops.fit_mixture(*[torch.tensor(1.0)] * 3), ValueError, r"mean must be \(B, \*\).* got a scalar"),
    "scalar x": (lambda: gms_step(*[torch.tensor(1.0)] * 4), ValueError, r"x must be \(B, \*\).* got a scalar"),
    "weight 0": (lambda: ops.fit_mixture(X, X, X, weight=0), ValueError, r"weight must lie in \(0, 1\): got 0"),
    "weight 1": (lambda: gms_step(X, X, X, X, weight=1), ValueError, r"weight must lie in \(0, 1\): got 1"),
    "weight NaN": (lambda: ops.sample_mixture(X, X, X, weight=NAN), ValueError, r"weight must lie in .* got nan"),
    "weight 1/2": (lambda: ops.fit_mixture(X, X, X, weight=0.5), ValueError, "weight must not be 1/2"),
    "weight 1/2, free": (lambda: gms_step(X, X, X, X, weight=0.5, fit="free"), ValueError, "weight must not be 1/2"),
    "fit": (lambda: ops.fit_mixture(X, X, X, fit="best"), ValueError, "fit must be one of exact, .* got 'best'"),
    "component": (
        lambda: gms_step(X, X, X, X, component="image"),
        ValueError,
        "component must be one of .* got 'image'",
    ),
    "moments": (lambda: gms_step(X, X, X, X, moments="raw"), ValueError, "moments must be one of .* got 'raw'"),
    "iterations": (
        lambda: ops.fit_mixture(X, X, X, iterations=-1),
        ValueError,
        "iterations must not be negative: got -1",
    ),
    "floor": (lambda: ops.fit_mixture(X, X, X, -1.0), ValueError, "floor must be finite and not negative: got -1"),
    "floor NaN": (lambda: ops.sample_mixture(X, X, X, NAN), ValueError, "floor must be .* got nan"),
    "floor infinite": (lambda: ops.fit_mixture(X, X, X, math.inf), ValueError, "floor must be .* got inf"),
    "clip": (
        lambda: gms_step(X, X, X, X, clip=(1, -1)),
        ValueError,
        r"clip must be \(lo, hi\) with lo < hi, or None: got \(1",
    ),
    "clip empty": (lambda: gms_step(X, X, X, X, clip=(0, 0)), ValueError, "clip must be"),
    "clip NaN": (lambda: gms_step(X, X, X, X, clip=(NAN, 1)), ValueError, "clip must be .* got"),
    "NaN numbers": (lambda: gms_step(X, X, X, X, replace(STEP, A=NAN)), ValueError, "coefficients .* finite: got"),
    "no e2": (lambda: gms_step(X, X, None, X), ValueError, "e2 must be given for fit='exact'"),
    "no e3": (lambda: gms_step(X, X, X, None, fit="free"), ValueError, "e3 must be given for fit='free'"),
    "no e2, released": (
        lambda: gms_step(X, X, None, None, fit="gaussian", moments="released"),
        ValueError,
        'e2 must be given for moments="released"',
    ),
    "z shape": (lambda: gms_step(X, X, X, X, noise=X[:1]), ValueError, r"noise z must match .* got \(1, 3\)"),
    "z dtype": (lambda: gms_step(X, X, X, X, noise=X.int()), TypeError, "noise z must be float32.* got torch.int32"),
    "u per sample": (lambda: gms_step(X, X, X, X, noise=(X, X)), ValueError, r"noise u .* one uniform per sample"),
    "u per element": (
        lambda: gms_step(X, X, X, X, component="element", noise=(X, X[:, 0])),
        ValueError,
        r"noise u must match .* got \(2,\), want \(2, 3\)",
    ),
    "seeds": (
        lambda: ops.sample_mixture(X, X, X, seed=[1, 2, 3]),
        ValueError,
        r"seeds must be \(2,\) or \(\) int64.* got \(3,\)",
    ),
    "seeds dtype": (lambda: gms_step(X, X, X, X, seed=torch.ones(2)), TypeError, "seed must be .* got torch.float32"),
    "seed": (lambda: gms_step(X, X, X, X, seed=0.5), TypeError, "seed must be an integer"),
    "seed range": (lambda: gms_step(X, X, X, X, seed=1 << 64), ValueError, "seed must fit in 64 bits"),
    "step": (lambda: gms_step(X, X, X, X, step_index=-1), ValueError, "step index must lie in"),
    "sample_offset": (lambda: gms_step(X, X, X, X, sample_offset=-1), ValueError, "sample_offset must lie in"),
    "out shape": (lambda: gms_step(X, X, X, X, out=torch.empty(3, 2)), ValueError, r"out must match x: got \(3, 2\)"),
    "out dtype": (lambda: gms_step(X, X, X, X, out=X.int()), TypeError, "out must be float32.* got torch.int32"),
    "out expanded": (
        lambda: gms_step(X, X, X, X, out=X[:1].expand(2, 3)),
        ValueError,
        "out must have its own memory",
    ),
    "out over itself": (
        lambda: gms_step(X, X, X, X, out=torch.zeros(9).as_strided((2, 3), (1, 1))),
        ValueError,
        "out must have its own memory",
    ),
    "z with a gradient": (
        lambda: gms_step(X, X, X, X, noise=torch.rand(2, 3, requires_grad=True)),
        RuntimeError,
        "forward only, but noise z requires a gradient",
    ),
    "u on another device": (
        lambda: gms_step(X, X, X, X, noise=(None, torch.empty(2, device="meta"))),
        ValueError,
        "noise u must be on the output's device",
    ),
    "integer u": (
        lambda: gms_step(X, X, X, X, noise=(None, torch.ones(2).int())),
        TypeError,
        "noise u must be float32",
    ),
    "weight in words": (lambda: ops.fit_mixture(X, X, X, weight="a"), TypeError, "weight must be a number: got 'a'"),
    "tiny weight": (lambda: ops.fit_mixture(X, X, X, weight=1e-50), ValueError, "weight must lie in .* got 1e-50"),
    "weight next to 1/2": (lambda: ops.fit_mixture(X, X, X, weight=0.5 + 2**-25), ValueError, "weight must not be 1/2"),
    "eps 0": (
        lambda: ops.fit_mixture(X, X, X, fit="adan", eps=0.0),
        ValueError,
        "eps must be at least 1e-20.* got 0.0",
    ),
    "array for x": (
        lambda: ops.affine_noise(X.numpy(), [], [1.0]),
        TypeError,
        r"x must be a tensor: got ndarray \(2, 3",
    ),
    "word for x": (lambda: gms_step("x", X, X, X, seed=[1, 2]), TypeError, "x must be a tensor: got 'x'"),
    "number for mean": (lambda: ops.fit_mixture(1.0, X, X), TypeError, "mean must be a tensor: got 1.0"),
    "word for dtype": (
        lambda: ops.philox_normal((2, 3), seed=0, dtype="float32"),
        TypeError,
        "dtype must be float32.* got float32",
    ),
    "step index on meta": (
        lambda: ops.philox_normal((2, 3), seed=0, step=torch.empty((), dtype=torch.int64, device="meta")),
        ValueError,
        "step index must hold numbers: got a tensor on meta",
    ),
    "seeds on meta": (
        lambda: gms_step(X, X, X, X, seed=torch.empty(2, dtype=torch.int64, device="meta")),
        ValueError,
        "seed must hold numbers: got a tensor on meta",
    ),
    "fit in a list": (lambda: ops.fit_mixture(X, X, X, fit=["exact"]), ValueError, "fit must be one of"),
    "iterations not whole": (lambda: ops.fit_mixture(X, X, X, iterations=2.5), TypeError, "iterations must be an int"),
    "many iterations": (lambda: ops.fit_mixture(X, X, X, iterations=1 << 31), ValueError, "iterations must be below"),
    "lr": (lambda: ops.fit_mixture(X, X, X, lr=NAN), ValueError, "lr must be finite"),
    "step_index not whole": (lambda: gms_step(X, X, X, X, step_index=2.5), TypeError, "step index must be an integer"),
    "clip half open": (
        lambda: gms_step(X, X, X, X, clip=(-math.inf, 1.0)),
        ValueError,
        "clip must be finite at both ends",
    ),
    "tiny alpha_t": (
        lambda: gms_step(X, X, X, X, replace(STEP, alpha_t=1e-120)),
        ValueError,
        "coefficients must have sigma_t/alpha_t whose cube is finite",
    ),
    "weights and noise_std": (
        lambda: ops.affine_noise(X, [X], torch.ones(3), 5.0),
        ValueError,
        "noise_std must not be given with a tensor of weights",
    ),
    "step shape": (
        lambda: gms_step(X, X, X, X, torch.ones(6)),
        ValueError,
        r"step must be \(10,\) float32.* got \(6,\)",
    ),
    "step_index shape": (
        lambda: gms_step(X, X, X, X, step_index=torch.zeros(2, dtype=torch.int64)),
        ValueError,
        r"step index must be \(\) int64.* got \(2,\)",
    ),
    "terms shape": (
        lambda: ops.affine_noise(X, [X, X[:1]], [1, 1, 1]),
        ValueError,
        r"terms\[1\] must match x: got \(1",
    ),
    "e1 in a list": (lambda: gms_step(X, [1.0], X, X), TypeError, r"e1 must be a tensor: got \[1.0\]"),
    "terms": (lambda: ops.affine_noise(X, [None], [1, 1]), TypeError, r"terms\[0\] must be a tensor: got None"),
    "many terms": (
        lambda: ops.affine_noise(X, [X] * 9, [1] * 10),
        ValueError,
        "terms must be at most 8 tensors: got 9",
    ),
    "weights": (lambda: ops.affine_noise(X, [X], [1.0]), ValueError, "weights must be 2 numbers, .*: got 1"),
    "weights NaN": (lambda: ops.affine_noise(X, [X], [1.0, NAN]), ValueError, "weights must be finite: got"),
    "weights tensor": (
        lambda: ops.affine_noise(X, [X], torch.ones(2)),
        ValueError,
        r"weights must be \(3,\) float32.* got \(2,\)",
    ),
    "weights by element, shape": (
        lambda: ops.affine_noise(X, [X], torch.ones(3, 4)),
        ValueError,
        r"weights must be \(3, 3\) float32 on cpu: got \(3, 4\)",
    ),
    "weights by element, rows": (
        lambda: ops.affine_noise(X, [X], torch.ones(2, 3), 0.5),
        ValueError,
        r"weights must be \(3, 3\) float32.* got \(2, 3\)",
    ),
    "weights for every sample": (
        lambda: ops.affine_noise(X, [X], torch.ones(3, 2, 3)),
        ValueError,
        r"weights must be \(3, 3\) float32.* got \(3, 2, 3\)",
    ),
    "weights by element, dtype": (
        lambda: ops.affine_noise(X, [X], torch.ones(3, 3).bfloat16()),
        ValueError,
        "weights must be .* float32.* got .* torch.bfloat16",
    ),
    "weights by element, float64": (
        lambda: ops.affine_noise(X, [X], torch.ones(3, 3).double()),
        ValueError,
        "weights must be .* float32.* got .* torch.float64",
    ),
    "weights by element, device": (
        lambda: ops.affine_noise(X, [X], torch.ones(3, 3, device="meta")),
        ValueError,
        "weights must be .* on cpu: got .* on meta",
    ),
    "weights by element with a gradient": (
        lambda: ops.affine_noise(X, [X], torch.ones(3, 3, requires_grad=True)),
        RuntimeError,
        "forward only, but weights requires a gradient",
    ),
    "weights by element, noise_std": (
        lambda: ops.affine_noise(X, [X], torch.ones(3, 3), -1.0),
        ValueError,
        "noise_std must be .* got -1",
    ),
    "noise_std": (
        lambda: ops.affine_noise(X, [], [1.0], -1.0),
        ValueError,
        "noise_std must be .* got -1",
    ),
    "shape": (lambda: ops.philox_normal((), seed=0), ValueError, r"shape must be \(B, \*\)"),
    "negative size": (lambda: ops.philox_uniform((2, -1), seed=0), ValueError, r"shape must be .* got \(2, -1\)"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_argument_is_named(case):
    call, error, message = REFUSALS[case]
    with pytest.raises(error, match=message):
        call()


def test_symmetric_weight_suits_fits_without_a_third_moment():
    for fit in ("gaussian", "adan"):
        assert torch.isfinite(gms_step(X, X, X, X, fit=fit, weight=0.5)).all()


def test_refused_out_is_left_alone():
    out = torch.full((2, 3), 7.0)
    with pytest.raises(ValueError, match="weight"):
        gms_step(X, X, X, X, weight=2, out=out)
    assert (out == 7).all()
