"""Tables and plots of the matrix."""

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
