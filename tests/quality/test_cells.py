"""Cells: their solver, their grid, and their range of samples."""

from dataclasses import replace

import pytest
import torch

import gms_fast
from gms_fast import editing, solvers
from gms_fast.quality import cells, measures, subjects
from gms_fast.quality.cells import Cell

pytestmark = pytest.mark.filterwarnings("ignore:Metric `Kernel")


def test_an_open_grid_leaves_out_its_last_time():
    """Expect K - 1 steps and the last call, from a grid of K steps."""
    schedule = subjects.build("exact-digits").model.schedule
    cell = Cell("exact-digits", "ddim", "open 0.7", 4)
    _, calls = cells.samples(cell, subjects.build("exact-digits"), 2)
    assert calls == 5
    assert cells._asked(solvers.DDIM(), schedule, "open 0.7", 4)[1] == schedule.timesteps(5, 0.7)[:-1]


def test_a_table_is_named_by_model_and_steps():
    assert cells._solver(Cell("mnist", "ggdm", steps=5)).table.steps == 5
    with pytest.raises(ValueError, match="5 steps, not 6"):
        cells.check(Cell("mnist", "ggdm:table=mnist/5", steps=6), 100, subjects.build("mnist"))


def test_a_range_of_samples_continues_the_one_before():
    subject = subjects.build("exact-digits")
    first, second = (cells.samples(Cell("exact-digits", "gms", "uniform", 2, r), subject, 4)[0] for r in (0, 1))
    times = subject.model.schedule.timesteps(2)
    whole = gms_fast.sample(subject.model, timesteps=times, n=8, clip=None, dtype=torch.float64)
    assert (torch.cat([first, second]) - whole).abs().max() < 1e-9  # only the matrix products' rounding


# --- cells with a strength: results of stroke synthesis ---


@pytest.mark.parametrize("solver", ["gms", "ddim", "er-sde"])
def test_a_cell_with_a_strength_has_the_bits_of_stroke(solver):
    """Compare with `editing.stroke` on the solver's own grid, named or default."""
    subject = subjects.build("digits")
    n, cell = 6, Cell("digits", solver, "default", 3, 1, strength=0.4)
    drawn, calls = cells.samples(cell, subject, n)
    guides = subject.strokes(n, n)
    whole = editing.stroke(
        subject.model, guides, strength=0.4, steps=3, solver=solver, sample_offset=n, clip=subject.clip
    )
    assert torch.equal(drawn, whole)
    own = solvers.build(solver).spacing or subject.model.schedule.spacing
    named, again = cells.samples(replace(cell, grid=str(own)), subject, n)
    assert torch.equal(drawn, named)
    assert calls == again
    assert not torch.equal(drawn, cells.samples(replace(cell, strength=0.6), subject, n)[0])


def test_strokes_take_the_control_pictures_in_turn():
    subject = subjects.build("digits")
    count = len(subject.control)
    assert torch.equal(subject.strokes(3, count - 1), editing.paint(subject.control[[-1, 0, 1]]))
    cell = Cell("digits", "guide", range=2)
    guides, calls = cells.samples(cell, subject, 400)
    assert calls == 0
    assert torch.equal(guides, subject.strokes(400, 800))
    pictures = subject.control[torch.arange(800, 1200) % count]
    expected = (guides - pictures).flatten(1).double().norm(dim=1).mean()
    assert cells.faithful(cell, guides, subject)["faithful"] == pytest.approx(float(expected))


def test_faithfulness_is_measured_of_results_alone():
    record = cells.evaluate(Cell("digits", "ddim", "angle", 1, strength=0.2), 70)["record"]
    subject = subjects.build("digits")
    x, _ = cells.samples(Cell("digits", "ddim", "angle", 1, strength=0.2), subject, 70)
    assert record["faithful"] == measures.faithfulness(x, subject.strokes(70, 0)) > 0
    assert record["strength"] == 0.2
    plain = cells.evaluate(Cell("digits", "ddim", "angle", 1), 70)["record"]
    assert not {"faithful", "strength"} & plain.keys()


def test_more_strength_is_less_faithful():
    subject = subjects.build("digits")
    found = []
    for strength in (0.1, 0.4, 0.8):
        cell = Cell("digits", "ddim", "angle", 4, strength=strength)
        found.append(cells.faithful(cell, cells.samples(cell, subject, 100)[0], subject)["faithful"])
    assert found == sorted(found)


def test_an_open_grid_begins_at_the_strength_too():
    schedule = subjects.build("digits").model.schedule
    assert cells._asked(solvers.DDIM(), schedule, "open 0.7", 3, 400.0)[1] == schedule.timesteps(4, 0.7, 400.0)[:-1]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Cell("digits", "ddim", steps=2, strength=0.0), "strength must lie between 0, .* got 0.0"),
        (Cell("digits", "ddim", steps=2, strength=1.0), "strength must lie between 0, .* got 1.0"),
        (Cell("mnist", "ggdm:table=mnist/5", steps=5, strength=0.5), "solver must be one that can start in the middle"),
        (Cell("digits", "diffusers:solver_order=2", "uniform", 2, strength=0.5), "strength is for solvers of this"),
        (Cell("exact-digits", "ddim", steps=2, strength=0.5), "need real images to paint"),
        (Cell("eight", "guide"), "need real images to paint"),
    ],
)
def test_a_bad_strength_is_refused(cell, message):
    with pytest.raises(ValueError, match=message):
        cells.check(cell, 100, subjects.build(cell.model))


def test_a_network_draws_on_the_device_that_is_named():
    """Draw on a named device; measures use the CPU, so records do not depend on the device."""
    cell = Cell("digits", "ddim", "uniform", 1)
    plain, named = (cells.evaluate(cell, 100, device=device)["record"] for device in (None, "cpu"))
    assert {**plain, "seconds": 0} == {**named, "seconds": 0}
    with pytest.raises(RuntimeError, match="nowhere"):
        cells.evaluate(cell, 100, device="nowhere")
