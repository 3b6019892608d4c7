"""Random fits, steps and calls of every op, and planted faults that they must find."""

import itertools
import json

import pytest
import torch
from parity import FITS
from places import ROOT

from bench.faults import random_calls, random_fits, random_steps, values
from bench.faults.outcomes import Call, check
from gms_fast import ops
from gms_fast.types import Mixture

CASES = 2000


def test_random_values_and_layouts():
    faults = {case: fault for case in itertools.islice(values.cases(), CASES) if (fault := case.check())}
    assert not faults


def test_cases_go_on_where_they_stopped():
    whole = list(itertools.islice(values.cases(seed=3), 40))
    assert list(itertools.islice(values.cases(seed=3, first=30), 10)) == whole[30:]
    again = random_calls.call(5), random_calls.call(5)
    assert str(again[0]) == str(again[1])


def test_cases_of_two_seeds_are_different():
    one, other = (random_fits.problem(values._seed(seed, 0), "free", torch.float32, 9) for seed in (0, 1))
    assert not torch.equal(one.mean, other.mean)


def of_the_heavy_weight(fitted, given):
    """Take the heavy component's weight as the exact one, so that the light one is rounded."""
    w, a, b, v = fitted
    return Mixture(1 - (1 - w), a, b, v)


WRONG_FITS = {
    "third: ": lambda fitted, given: fitted._replace(mean_a=2 * fitted.mean_a - given.mean),
    "var: ": of_the_heavy_weight,
    "mean: ": lambda fitted, given: fitted._replace(mean_b=fitted.mean_b * (1 + 2.0**-15)),
    "V is below": lambda fitted, given: fitted._replace(var=fitted.var * (1 - 2.0**-23)),
    "not finite": lambda fitted, given: fitted._replace(var=fitted.var / 0),
    "the weight is another": lambda fitted, given: fitted._replace(weight=1 - fitted.weight),
    "a draw is not of the mixture": lambda fitted, given: fitted._replace(mean_a=fitted.mean_b, mean_b=fitted.mean_a),
}


@pytest.mark.parametrize("message", WRONG_FITS)
def test_wrong_fit_is_told(message, monkeypatch):
    right = ops.fit_mixture
    given = random_fits.problem(1, "free", torch.float32, 4000)
    monkeypatch.setattr(ops, "fit_mixture", lambda *a, **o: WRONG_FITS[message](right(*a, **o), given))
    assert message in random_fits.check(given)[1]


def test_rounding_of_the_weight_is_more_than_the_bound_allows(monkeypatch):
    """Exceed the bound by the rounding of 1 - w, two percent where w is float32's 1 - 1e-6.

    The moments belong to this rounded weight and to no other.
    """
    moments = [torch.full((1, 1), m) for m in (0.0, 1.0, -5.0)]
    given = random_fits.Problem("exact", 1 - 1e-6, 0.0, *moments)
    assert random_fits.check(given)[1] is None
    fitted = ops.fit_mixture(*given.moments, weight=given.weight)
    wide = fitted._replace(mean_a=fitted.mean_a * 1.01, mean_b=fitted.mean_b * 1.01)
    assert random_fits.in_units_of_the_bound(wide, given)["var"] > 1


@pytest.mark.parametrize("fit", FITS)
def test_step_that_is_not_finite_is_told(fit, monkeypatch):
    right = ops.gms_step
    monkeypatch.setattr(ops, "gms_step", lambda *a, out, **o: right(*a, out=out, **o).flatten()[-1:].fill_(torch.nan))
    assert "give nan" in random_steps.check(0, fit, torch.float32, 10)


def broken(op, kind):
    def call(first, *rest, **options):
        if kind == "RuntimeError":
            raise RuntimeError("crash")
        result = op(first, *rest, **options)
        if kind == "bits":
            return result + 2.0**-7 * (not first.is_contiguous())
        first.untyped_storage().fill_(1)
        return result

    return call


@pytest.mark.parametrize(
    ("kind", "message"),
    [("bits", "other bits"), ("memory", "memory was changed"), ("RuntimeError", "refused: RuntimeError")],
)
def test_wrong_call_is_told(kind, message, monkeypatch):
    x = torch.ones(4, 3).t()
    call = Call("affine_noise", {"first": x, "terms": [], "weights": [1.0]})
    monkeypatch.setattr(ops, "affine_noise", broken(ops.affine_noise, kind))
    assert check(call).startswith(message)


def test_argument_that_is_not_refused_is_told():
    x = torch.ones(2, 3)
    call = Call("affine_noise", {"x": x, "terms": [], "weights": [1.0]}, wrong="x")
    assert check(call).startswith("not refused")


def test_docs_show_the_committed_results():
    figures = json.loads((ROOT / "bench" / "results" / "values.json").read_text())
    text = (ROOT / "docs" / "faults.md").read_text()
    wrong = figures["calls"].pop("wrong")
    assert not figures["failed"]
    assert values.table(figures) in text
    stated = f"{sum(figures['calls'].values()):,} calls to the ops, {wrong:,} of them with a wrong argument"
    assert stated in " ".join(text.split())
    assert {row["count"] for row in figures["fits"]} == {1_000_000}
