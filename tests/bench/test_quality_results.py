"""The quick quality matrix, and committed results that docs/quality.md and defaults rest on."""

import json
import math
import statistics
import subprocess
import sys

import pytest
from places import ROOT
from scipy.stats import ttest_ind

from bench.docs import quality_tables
from bench.experiments.quality import RECOMMENDED, SETTLED, extra_calls
from gms_fast.quality import matrix, report
from gms_fast.quality.cells import CONTROLS

RESULTS = ROOT / "bench" / "results" / "quality"
DEFAULT = "gms:fit=free,component=element"
LOWER = ("frechet", "kernel", "energy", "sliced", "mean", "variance", "third")
HIGHER = ("precision", "recall", "confident")


def values(group, model, solver, grid, steps, measure):
    """Return the committed figures of the three ranges."""
    cell = {"model": model, "solver": solver, "grid": grid, "steps": steps}
    found = [r[measure] for r in matrix.read(RESULTS / group) if all(r[k] == v for k, v in cell.items())]
    assert len(found) == 3, cell
    return found


def spread(*cell):
    """Return their mean and standard deviation."""
    found = values(*cell)
    return statistics.fmean(found), statistics.stdev(found)


@pytest.mark.slow(30)
def test_quick_matrix_runs_and_has_nothing_left_to_do(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "bench.experiments.quality", "--quick", "--out", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    folder = tmp_path / "quick"
    records = (folder / matrix.RECORDS).read_text()
    tables = (folder / "tables.md").read_text()
    models = ("mixture-1d", "eight", "exact-digits", "digits")
    for model in models:
        assert f"## {model}\n" in tables
        assert (folder / f"{model}.png").stat().st_size > 5000
    assert len(records.splitlines()) == 3 * sum(2 + 3 * steps for steps in (2, 1, 1, 2))
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    assert (folder / matrix.RECORDS).read_text() == records


@pytest.mark.parametrize(
    "group", ["exact", "digits", "mnist", "angle", "cosine", "calls", "gaussian", "heads", "stroke"]
)
def test_committed_records_are_of_one_commit_and_say_which(group):
    records = matrix.read(RESULTS / group)
    assert len({r["origin"] for r in records}) == 1
    assert "dirty" not in records[0]["origin"]
    rows = {
        "calls": {DEFAULT},
        "gaussian": {DEFAULT},
        "cosine": {f"{DEFAULT},clip_pixel=None", "sn-ddpm:clip_pixel=None"},
    }
    controls = {"real", "guide"} if group == "stroke" else {"real", "gaussian"}
    assert {r["solver"] for r in records} >= {*controls, *rows.get(group, {DEFAULT, "sn-ddpm"})}


def test_strokes_are_compared_at_equal_calls_and_lose_faithfulness_with_strength():
    for model, calls in (("digits", (5, 10, 20)), ("mnist", (5, 10))):
        parts = report.at_calls(quality_tables.records("stroke", model))
        assert tuple(parts) == calls
        for part in parts.values():
            drawn = [r for r in part if "strength" in r]
            assert len({r["solver"] for r in drawn}) == 5
            ends = (f(r["strength"] for r in drawn) for f in (min, max))
            near, far = (statistics.fmean(r["faithful"] for r in drawn if r["strength"] == end) for end in ends)
            assert near < far


@pytest.mark.parametrize(
    ("solver", "steps", "energy"),
    [
        ("ddpm", 5, 0.132), ("ddpm", 10, 0.0167), ("ddpm", 20, 0.0041),
        ("sn-ddpm", 5, 0.0175), ("sn-ddpm", 10, 0.0068), ("sn-ddpm", 20, 0.0021),
        ("gms:fit=exact,component=element", 5, 0.0167), ("gms:fit=exact,component=sample", 5, 0.0162),
        ("gms:fit=exact,component=sample", 10, 0.0063), ("gms:fit=free,component=element", 10, 0.0079),
    ],
)  # fmt: skip
def test_exact_moments_of_digits_reproduce_earlier_measurements(solver, steps, energy):
    """Compare with earlier results within three standard deviations.

    Those had 4,000 samples, these have 2,000, so their spread is taken as 1/sqrt 2 of this one.
    """
    solver = f"{solver}{',' if ':' in solver else ':'}clip_pixel=None"
    mean, width = spread("exact", "exact-digits", solver, "uniform", steps, "energy")
    assert abs(mean - energy) < 3 * math.hypot(width / math.sqrt(3), max(width, 0.001) / math.sqrt(2))


def test_free_fit_halves_the_distance_of_sn_ddpm_in_one_dimension():
    for grid in ("uniform", "0.5", "log-snr"):
        free, gaussian = (spread("exact", "mixture-1d", s, grid, 10, "wasserstein")[0] for s in (DEFAULT, "sn-ddpm"))
        assert free <= gaussian / 2, grid


@pytest.mark.parametrize(
    ("model", "group", "grids", "steps"),
    [
        *(("digits", "digits", ("uniform", "0.7", "0.5", "0.4"), k) for k in (5, 10, 20)),
        *(("digits", "angle", ("angle",), k) for k in (5, 10, 20)),
        *(("mnist", "mnist", ("0.5",), k) for k in (5, 10, 20)),
        *(("mnist", "angle", ("angle",), k) for k in (5, 10)),
    ],
)
@pytest.mark.parametrize("measure", [*LOWER, *HIGHER])
def test_default_is_not_worse_than_sn_ddpm_beyond_the_spread(model, group, grids, steps, measure):
    """Compare GMS with SN-DDPM, each on its best grid.

    Three ranges say little about a spread. So "worse" means by Welch's test with 99 % confidence and, since that allows
    much, by more than 15 %.
    """
    sign = -1 if measure in HIGHER else 1
    gms, gaussian = (
        min((values(group, model, s, g, steps, measure) for g in grids), key=lambda v: sign * statistics.fmean(v))
        for s in (DEFAULT, "sn-ddpm")
    )
    worse = "greater" if sign > 0 else "less"
    assert ttest_ind(gms, gaussian, equal_var=False, alternative=worse).pvalue > 0.01
    if measure in ("frechet", "energy", *HIGHER):
        assert sign * (statistics.fmean(gms) / statistics.fmean(gaussian) - 1) < 0.15


@pytest.mark.parametrize(("more", "fewer"), [(DEFAULT, "sn-ddpm"), ("sn-ddpm", "ddpm")])
@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize("network", ["unet", "dit"])
@pytest.mark.parametrize("measure", [*LOWER, *HIGHER])
def test_heads_on_other_networks_make_nothing_worse_beyond_the_spread(network, steps, measure, more, fewer):
    """Compare solvers by Welch's test on three ranges, each on its best grid.

    DDPM is left out for precision, which is high because its variance is too small.
    """
    if fewer == "ddpm" and measure in ("precision", "confident"):
        pytest.skip("DDPM is more precise and recalls less, as on networks of ours")
    sign = -1 if measure in HIGHER else 1
    model = f"runs/strangers/heads/{network}/model"
    found = (
        min((values("strangers", model, s, g, steps, measure) for g in ("0.5", "angle")), key=lambda v: sign * sum(v))
        for s in (more, fewer)
    )
    alternative = "greater" if sign > 0 else "less"
    assert ttest_ind(*found, equal_var=False, alternative=alternative).pvalue > 0.01


@pytest.mark.parametrize("steps", [5, 10])
def test_grid_of_the_default_beats_the_released_one(steps):
    own, own_width = spread("angle", "digits", DEFAULT, "angle", steps, "frechet")
    released, width = spread("digits", "digits", DEFAULT, "uniform", steps, "frechet")
    assert own + 2 * own_width < released - 2 * width


@pytest.mark.parametrize("calls", [5, 10])
@pytest.mark.parametrize("rival", ["dpm-solver++", "dpm-solver++:denoise=False", "diffusers:solver_order=2"])
@pytest.mark.parametrize("model", ["digits", "mnist"])
def test_dpm_solver_v3_is_not_worse_than_dpm_solver_pp(model, rival, calls):
    """Compare at equal calls, with statistics trusted from lambda = -2 on, by Welch's test."""
    records = [r for r in matrix.read(RESULTS / "calls") if r["model"] == model and r["calls"] == calls]
    of = {s: [r for r in records if r["solver"] == s] for s in (f"dpm-solver-v3:statistics={model},trust=-2", rival)}
    ours, theirs = ([r["frechet"] for r in found] for found in of.values())
    assert len(ours) == len(theirs) == 3
    assert ttest_ind(ours, theirs, equal_var=False, alternative="greater").pvalue > 0.01
    assert statistics.fmean(ours) < statistics.fmean(theirs)


# --- the Gaussian of the data: choices made on range 0 are judged on the other ranges, unless stated ---

V3 = "dpm-solver-v3:statistics=mnist,trust=-2"
MULTISTEP = ("dpm-solver++:denoise=False", "er-sde", V3)


def judged(solver, calls, measure, ranges=(1, 2), model="mnist"):
    """Return the mean at a number of network calls, by grid."""
    found = {}
    for r in matrix.read(RESULTS / "gaussian"):
        if (r["model"], r["solver"], r["calls"]) == (model, solver, calls) and r["range"] in ranges:
            found.setdefault(r["grid"], []).append(r[measure])
    assert found
    assert all(len(v) == len(ranges) for v in found.values())
    return [statistics.fmean(v) for v in found.values()]


def test_teleport_beats_the_best_solver_without_at_five_calls():
    """Expect 40 % less feature distance on the judged and on all ranges, without less precision."""
    ahead = f"teleport:statistics=mnist,until=20 then {V3}"
    for ranges in ((1, 2), (0, 1, 2)):
        best = min(min(judged(s, 5, "frechet", ranges)) for s in (*MULTISTEP, DEFAULT))
        assert judged(ahead, 5, "frechet", ranges)[0] < 0.6 * best
        assert judged(ahead, 5, "precision", ranges)[0] > min(judged(V3, 5, "precision", ranges))


@pytest.mark.parametrize("calls", [3, 5, 8, 10])
@pytest.mark.parametrize("then", [*MULTISTEP, DEFAULT])
def test_teleport_loses_nothing_before_any_solver(then, calls):
    jumped = judged(f"teleport:statistics=mnist,until=10 then {then}", calls, "frechet", (0, 1, 2))
    assert jumped[0] < 1.1 * min(judged(then, calls, "frechet", (0, 1, 2)))


@pytest.mark.parametrize("calls", [5, 10])
def test_covariance_takes_a_quarter_off_gms_at_no_loss_of_precision(calls):
    together = f"{DEFAULT},covariance=mnist,switch=3"
    assert judged(together, calls, "frechet")[0] < 0.75 * judged(DEFAULT, calls, "frechet")[0]
    assert judged(together, calls, "precision")[0] > judged(DEFAULT, calls, "precision")[0] - 0.01  # their spread


@pytest.mark.parametrize(
    ("row", "energy"),
    [
        ("eigenbasis only", (0.0067, 0.0059, 0.0032, 0.0006)),
        ("eigenbasis to 0.7, then exact, sample", (None, 0.0062, 0.0037, 0.0015)),
        ("eigenbasis to 1.5, then exact, sample", (None, 0.0075, 0.0028, 0.0014)),
        ("SN-DDPM", (None, 0.0175, 0.0068, 0.0021)),
        ("SN-DDPM along eigenvectors", (None, 0.0065, 0.0025, 0.0003)),
        ("Gaussian with the whole covariance", (0.0037, 0.0041, -0.0003, -0.0010)),
    ],
)
def test_eigenbasis_reproduces_earlier_measurements(row, energy):
    """Compare with earlier results within three standard errors.

    Energies differ by .0008 from seed to seed (standard deviation; the mean over the rows). The earlier result is one
    seed of 4,000 samples, this one the mean of three.
    """
    found = json.loads((ROOT / "bench" / "results" / "eigenbasis.json").read_text())["scores"]["energy distance"]
    for steps, earlier in zip(("3", "5", "10", "20"), energy, strict=True):
        if earlier is not None:
            assert statistics.fmean(found[row][steps]) == pytest.approx(earlier, abs=3 * 0.0008 * math.sqrt(4 / 3)), (
                steps
            )


def test_correlation_between_pixels_helps_with_exact_moments():
    """Order pixel laws, the data's Gaussian and a network's covariances at few steps."""
    found = json.loads((ROOT / "bench" / "results" / "eigenbasis.json").read_text())["scores"]
    pixels = {row: statistics.fmean(v["5"]) for row, v in found["pixel Frechet distance"].items()}
    assert pixels["Gaussian with the whole covariance"] < pixels["SN-DDPM along eigenvectors"]
    assert pixels["SN-DDPM along eigenvectors"] < pixels["eigenbasis only"] < 0.4 * pixels["GMS exact, sample"]
    assert pixels["correlated draws"] < pixels["eigenbasis to 1.5, then free, element"] < pixels["GMS free, element"]


# --- learned tables: their search used none of the samples, data and networks behind these figures ---


@pytest.mark.parametrize(("calls", "share"), [(5, 0.7), (10, 0.85)])
def test_learned_tables_beat_the_ddim_of_their_times(calls, share):
    """Expect 30 % less feature distance at 5 calls and 15 % at 10, without more energy distance."""
    began = [values("ggdm", "mnist", "ddim", "open 0.7", calls - 1, m) for m in ("frechet", "energy")]
    table = f"ggdm:table=mnist/{calls}"
    learned = [values("ggdm", "mnist", table, "default", calls, m) for m in ("frechet", "energy")]
    assert statistics.fmean(learned[0]) < share * statistics.fmean(began[0])
    assert statistics.fmean(learned[1]) <= statistics.fmean(began[1])
    assert max(learned[0]) < min(began[0])


@pytest.mark.parametrize("calls", [5, 10])
@pytest.mark.parametrize("measure", ["frechet", "kernel"])
def test_learned_tables_beat_what_they_began_as(calls, measure):
    began = values("ggdm", "mnist", "unip", "open 0.7", calls - 1, measure)
    learned = values("ggdm", "mnist", f"ggdm:table=mnist/{calls}", "default", calls, measure)
    assert statistics.fmean(learned) < statistics.fmean(began)


def all_rows(model, calls):
    """Return the mean feature distance of every row for learned networks at a number of calls."""
    found = {}
    for group in ("calls", "gaussian", "ggdm", "best"):
        for r in matrix.read(RESULTS / group):
            if r["model"] == model and r["calls"] == calls and r["solver"] not in CONTROLS:
                found.setdefault((group, r["solver"], r["grid"]), []).append(r["frechet"])
    return {key: statistics.fmean(v) for key, v in found.items() if len(v) == 3}


@pytest.mark.parametrize(("calls", "most"), [(5, 30), (10, 14)])
def test_gms_at_its_best_settings(calls, most):
    """Check the targets of the search on other ranges: no less precision than SN-DDPM."""
    solver, grid = SETTLED["mnist"][calls]
    assert spread("best", "mnist", solver, grid, calls - 1, "frechet")[0] <= most
    precision, error = spread("best", "mnist", solver, grid, calls - 1, "precision")
    rival, other = spread("best", "mnist", "sn-ddpm", "angle", calls - 1, "precision")
    assert precision > rival - max(error, other)


@pytest.mark.parametrize(
    ("model", "calls"), [*(("digits", k) for k in (3, 5, 10, 20)), *(("mnist", k) for k in (3, 5, 10))]
)
def test_what_is_recommended_is_near_the_best_row(model, calls):
    """Within 10 % and the spread; docs/quality/appendix-best.md tells of the one exception."""
    rows = all_rows(model, calls)
    solver, grid = RECOMMENDED[model][calls]
    steps = calls - extra_calls(solver)
    found, error = spread("best", model, solver, grid, steps, "frechet")
    assert found <= 1.1 * min(rows.values()) + error
