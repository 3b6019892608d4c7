"""Float32 functions of csrc/gms/elementary.h against float64, in units in the last place."""

import math

import numpy as np
import pytest

from gms_fast.ops import native

if not native.available:
    pytest.skip("the compiled module was not built (GMS_FAST_PURE=1)", allow_module_level=True)

from gms_fast import _C as C


def errors(name, xs, exact):
    got = np.array([C.elementary(name, float(x)) for x in xs], dtype=np.float64)
    want = np.array([exact(float(x)) for x in xs])
    return np.abs(got - want), np.spacing(np.abs(want).astype(np.float32)).astype(np.float64), want


def test_minus_two_log_errs_by_two_ulp_at_most():
    words = np.random.default_rng(0).integers(0, 2**32, 20_000).astype(np.float32)
    u = (words * 2.0**-32 + 2.0**-33).astype(np.float32)
    u = np.concatenate([u, np.float32([2.0**-33, 1.0, 0.70710677, 0.70710683, 1 - 2**-24])])
    error, ulp, _ = errors("minus_two_log", u, lambda v: -2 * math.log(v))
    assert (error <= 2 * ulp).all()


@pytest.mark.parametrize(("name", "function"), [("sin_turn", math.sin), ("cos_turn", math.cos)])
def test_sincos_turn_errs_by_two_ulp_but_at_its_zeros(name, function):
    u = np.random.default_rng(1).random(20_000, dtype=np.float32)
    u = np.concatenate([u, np.linspace(0, 1, 4097, dtype=np.float32)])
    error, ulp, _ = errors(name, u, lambda x: function(2 * math.pi * x))
    assert (error <= np.maximum(2 * ulp, 2.0**-45)).all()  # near its zeros float64's own pi decides


def test_cbrt_errs_by_two_ulp_at_most():
    rng = np.random.default_rng(2)
    x = 10.0 ** rng.uniform(-37.9, 38.5, 20_000) * rng.choice([-1, 1], 20_000)
    x = np.concatenate([x, [1.0, 8.0, -27.0, 2.0**-126, 3.4028234e38]])
    error, ulp, _ = errors("cbrt", x.astype(np.float32), lambda v: math.copysign(abs(v) ** (1 / 3), v))
    assert (error <= 2 * ulp).all()


@pytest.mark.parametrize("x", [0.0, -0.0, math.inf, -math.inf, math.nan])
def test_cbrt_passes_special_values_through(x):
    got = C.elementary("cbrt", x)
    assert math.isnan(got) if math.isnan(x) else (got == x and math.copysign(1, got) == math.copysign(1, x))


def test_cbrt_of_a_denormal_is_tiny():
    """Check cube roots of denormals, which are below 2^-42.

    Such third moments show in no float32 sample.
    """
    for x in (1e-45, -1e-40, 1.1754942e-38):
        got = C.elementary("cbrt", x)
        assert 0 <= math.copysign(got, got * x) <= 2.0**-42
