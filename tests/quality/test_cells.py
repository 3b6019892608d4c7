"""Cells: their solver, their grid, and their range of samples."""

import pytest
import torch

import gms_fast
from gms_fast import solvers
from gms_fast.quality import cells, subjects
from gms_fast.quality.cells import Cell

pytestmark = pytest.mark.filterwarnings("ignore:Metric `Kernel")


def test_an_open_grid_leaves_out_its_last_time():
    """K - 1 steps and the last call, from a grid of K steps."""
    schedule = subjects.build("exact-digits").model.schedule
    cell = Cell("exact-digits", "ddim", "open 0.7", 4)
    _, calls = cells.samples(cell, subjects.build("exact-digits"), 2)
    assert calls == 5
    assert cells._asked(solvers.DDIM(), schedule, "open 0.7", 4)[1] == schedule.timesteps(5, 0.7)[:-1]


def test_a_table_is_named_by_model_and_steps():
    assert cells._solver(Cell("mnist", "ggdm", steps=5)).table.steps == 5
    with pytest.raises(ValueError, match="steps: 5 there, 6 here"):
        cells.check(Cell("mnist", "ggdm:table=mnist/5", steps=6), 100, subjects.build("mnist"))


def test_a_range_of_samples_continues_the_one_before():
    subject = subjects.build("exact-digits")
    first, second = (cells.samples(Cell("exact-digits", "gms", "uniform", 2, r), subject, 4)[0] for r in (0, 1))
    times = subject.model.schedule.timesteps(2)
    whole = gms_fast.sample(subject.model, timesteps=times, n=8, clip=None, dtype=torch.float64)
    assert (torch.cat([first, second]) - whole).abs().max() < 1e-9  # only the matrix products' rounding
