"""Tables and plots of the quality matrix."""

import pytest
from PIL import Image

from gms_fast.quality import report

pytestmark = pytest.mark.filterwarnings("ignore:Metric `Kernel")


def record(**fields):
    return {"model": "m", "grid": "uniform", "n": 10, "calls": fields["steps"] + 1, "origin": "abc", **fields}


RECORDS = [
    *(record(solver="gms", steps=k, range=r, frechet=10 / k + r) for k in (5, 10) for r in (0, 1, 2)),
    *(record(solver="gms", grid="0.7", steps=5, range=r, frechet=1.0) for r in (0, 1)),
    record(solver="real", grid="default", steps=0, range=0, frechet=0.25),
]


def test_table_gives_means_spreads_and_controls():
    assert report.table(RECORDS, "frechet").splitlines() == [
        "| solver | grid | K=5 | K=10 |",
        "|---|---|---|---|",
        "| `gms` | uniform | 3.00 ±1.00 | 2.00 ±1.00 |",
        "| `gms` | 0.7 | 1.00 |  |",
        "| *real against real* |  | 0.250 |  |",
    ]
    text = report.tables(RECORDS)
    assert "## m\n\n3 ranges of 10 samples; abc." in text
    assert "(lower is better)" in text


def test_plot_shows_each_solver_on_its_best_grid(tmp_path):
    assert report._best(RECORDS, "gms", "frechet") == [(6, 1.0, 0.0), (11, 2.0, 1.0)]
    report.plot(RECORDS, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


# --- stroke synthesis: by strength, at so many network calls ---


def stroke(solver, strength, r, distance, frechet, calls=5, grid="angle"):
    made = record(solver=solver, grid=grid, steps=calls - 1, range=r, faithful=distance, frechet=frechet)
    return made | {"strength": strength, "calls": calls}


STROKES = [
    record(solver="real", grid="default", steps=0, range=0, frechet=0.25) | {"calls": 0},
    *(
        record(solver="guide", grid="default", steps=0, range=r, faithful=4.0, frechet=40.0 + r) | {"calls": 0}
        for r in (0, 1)
    ),
    *(stroke("gms", s, r, 10 * s + r, 8 - 10 * s) for s in (0.2, 0.6) for r in (0, 1)),
    *(stroke("gms", s, r, 5.0, 5.5, grid="uniform") for s in (0.2, 0.6) for r in (0, 1)),
    stroke("gms", 0.2, 0, 5.0, 2.0, calls=10),
]


def test_table_of_strengths_is_that_of_one_number_of_calls():
    assert list(report.at_calls(STROKES)) == [5, 10]
    assert report.table(report.at_calls(STROKES)[5], "faithful").splitlines() == [
        "| solver | grid | strength 0.2 | strength 0.6 |",
        "|---|---|---|---|",
        "| *the strokes* |  | 4.00 |  |",
        "| `gms` | angle | 2.50 ±0.71 | 6.50 ±0.71 |",
        "| `gms` | uniform | 5.00 | 5.00 |",
    ]
    assert "| *real against real* |  | 0.250 |" in report.table(report.at_calls(STROKES)[10], "frechet")
    text = report.tables(STROKES)
    assert "**distance to the strokes**, 5 network calls (lower is better)\n\n| solver |" in text
    assert text.count("network calls") == 4  # of two measures, at two numbers of calls


def test_records_without_strength_are_of_no_number_of_calls():
    assert report.at_calls(RECORDS) == {}


def test_curve_of_strokes_is_of_the_grid_that_is_best_over_the_strengths(tmp_path):
    found = report._by_strength([r for r in STROKES if r["calls"] == 5], "gms", "frechet")
    assert list(found) == [0.2, 0.6]
    assert found[0.6][0] == pytest.approx((6.5, 0.5**0.5))
    assert found[0.6][1] == (2.0, 0.0)
    report.plot_strokes(STROKES, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size[0] > 1.5 * picture.size[1]  # two panels
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
