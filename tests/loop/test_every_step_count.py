"""Closed fits on learned moments at few and many steps: finite and within their bounds."""

import pytest


@pytest.mark.slow(10)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("name", "steps"), [("digits", (1, 2, 3, 5, 7, 10, 20, 50, 100)), ("mnist", (1, 2, 5, 10, 30))]
)
def test_closed_fits_stay_inside_their_guards(name, steps):
    """`python -m bench.faults.finite` tries every number of steps from 1 to 100."""
    from bench.faults import finite

    worst = finite.survey([name], steps)
    assert len(worst) == len(finite.FITS) * len(finite.DTYPES)
    assert max(worst.values()) <= 1, worst
    assert min(worst.values()) > 0.2  # a bound that no value approaches would test nothing
