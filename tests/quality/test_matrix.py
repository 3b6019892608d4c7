"""The quality matrix: how a run resumes, and which cells and folders it refuses."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gms_fast
from gms_fast import data
from gms_fast.quality import cells, matrix, subjects
from gms_fast.quality.cells import Cell

pytestmark = pytest.mark.filterwarnings("ignore:Metric `Kernel")
CELLS = [Cell("mixture-1d", s, "uniform", k, r) for s in ("gms", "ddim") for k in (2, 3) for r in (0, 1)]


def run(out, todo=CELLS, **changes):
    return matrix.run(todo, out, **{"n": 200, "workers": 1, "progress": False, **changes})


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("matrix") / "out"
    run(out, CELLS[:1])
    return out


@pytest.fixture
def first(first_run, tmp_path):
    """Return a folder with the record of the first cell, which takes a process to make."""
    return Path(shutil.copytree(first_run, tmp_path / "out"))


def plain(records):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


def test_interrupted_matrix_goes_on_to_the_same_records(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    out = tmp_path / "parts"
    append, calls = matrix._append, []

    def interrupt_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        append(*args)

    monkeypatch.setattr(matrix, "_append", interrupt_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    monkeypatch.setattr(matrix, "_append", append)
    file = out / matrix.RECORDS
    assert len(file.read_text().splitlines()) == 2
    file.write_text(file.read_text() + '{"model": "mixture-1d", "sol')  # cut off while writing
    assert plain(run(out)) == plain(whole)
    assert len(file.read_text().splitlines()) == len(CELLS)

    def nothing_left(todo, *rest):
        assert list(todo) == []
        yield from ()

    monkeypatch.setattr(matrix, "_results", nothing_left)
    assert plain(run(out)) == plain(whole)


def test_an_error_ends_the_run_at_once(tmp_path):
    """Start no cells after one that fails, except those already given to the only worker."""
    network = gms_fast.load("digits")
    with torch.no_grad():
        network.out[2].weight.fill_(3e38)
    gms_fast.io.save(network, tmp_path / "broken")
    broken = Cell(str(tmp_path / "broken"), "ddim", "uniform", 1)
    start = time.perf_counter()
    with pytest.raises(ValueError, match="model returned NaN or infinity in e1 at step 0"):
        run(tmp_path / "out", [broken, *(Cell("digits", "ddim", "uniform", 50, r) for r in range(2000))], data="digits")
    assert time.perf_counter() - start < 300  # the others would take ten times that
    assert matrix.read(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("cell", "options", "message"),
    [
        (Cell("digits", "gms", "fast", 2), {}, "spacing must be"),
        (Cell("digits", "gms", "uniform", 5000), {}, "steps must be at most 1000"),
        (Cell("digits", "gms", "uniform", 2), {"n": {"mnist": 100}}, "n must give the number of samples of digits"),
        (Cell("digits", "gms", "uniform", 2), {"n": 64}, "n must be at least 65 samples"),
        (Cell("nowhere", "gms", "uniform", 2), {}, "nothing exists at nowhere"),
        (Cell("eight", "gms", "uniform", 2), {"data": "digits"}, "data is for learned models; eight has its own"),
        (Cell("digits", "gms", "uniform", 2, strength=1.5), {}, "strength must lie between 0"),
        (Cell("digits@bfloat17", "gms", "uniform", 2), {}, "nothing exists at digits@bfloat17"),
    ],
)
def test_a_bad_cell_is_refused_before_anything_is_written(tmp_path, cell, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(tmp_path / "out", [cell], **options)
    assert not (tmp_path / "out").exists()


def test_too_little_real_data_is_refused(tmp_path):
    np.save(tmp_path / "few.npy", data.load("digits")[:120, 0].numpy())
    subject = subjects.build("digits", str(tmp_path / "few.npy"))
    assert subject.features is None  # a file may hold anything
    subject = subjects.build("digits", str(tmp_path / "few.npy"), None, "digits")
    with pytest.raises(
        ValueError, match="data must hold at least 130 samples, half of them as reference: got 60 there"
    ):
        cells.check(Cell("digits", "gms", "uniform", 2), 100, subject)


def test_reading_changes_nothing(tmp_path):
    record = {**vars(CELLS[0]), "frechet": 1.5}
    text = json.dumps(record) + '\n{"model'
    (tmp_path / matrix.RECORDS).write_text(text)
    assert matrix.read(tmp_path) == [record]
    assert (tmp_path / matrix.RECORDS).read_text() == text


def test_records_with_a_strength_and_without_name_their_cells(tmp_path):
    """Read records from before strengths existed, which lack that field like cells without one."""
    cell = Cell("digits", "ddim", "angle", 5, 1, strength=0.4)
    for one in (CELLS[0], cell):
        assert matrix.cell_of(json.loads(json.dumps(one.fields)) | {"frechet": 1.5}) == one
    assert "strength" not in CELLS[0].fields
    assert matrix.picture(cell) != matrix.picture(dataclasses.replace(cell, strength=None)) == "digits-ddim-angle-5.png"
    file = tmp_path / matrix.RECORDS
    file.write_text(json.dumps({**cell.fields, "frechet": 1.5}) + "\n")
    assert matrix.cell_of(matrix.read(tmp_path)[0]) == cell
    file.write_text(json.dumps({**cell.fields, "strength": "much"}) + "\n")
    with pytest.raises(ValueError, match=r"strength is 'much', wanted .*a finite number in \[0, 1\]"):
        matrix.read(tmp_path)


def test_a_damaged_line_is_named(tmp_path):
    record = json.dumps({**vars(CELLS[0]), "frechet": 1.5})
    file = tmp_path / matrix.RECORDS
    for line, said in (("{", "Expecting"), (record.replace("1.5", '"x"'), "frechet is 'x', wanted a number")):
        file.write_text(f"{record}\n{line}\n")
        with pytest.raises(ValueError, match=rf"records\.jsonl, line 2, is not a record: .*{said}"):
            matrix.read(tmp_path)


def test_damaged_settings_are_named(first):
    file = first / matrix.SETTINGS
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"{file} holds no settings: "):
        run(first, CELLS[:1])


@pytest.mark.parametrize(("change", "message"), [({"n": 300}, "n is 200 there and 300 here"), ({}, "sources is ")])
def test_records_of_another_configuration_are_not_mixed(first, monkeypatch, change, message):
    before = (first / matrix.RECORDS).read_text()
    if not change:
        monkeypatch.setattr(matrix, "sources", lambda: "another commit")
    with pytest.raises(ValueError, match=message):
        run(first, CELLS[:2], **change)
    assert (first / matrix.RECORDS).read_text() == before


def test_other_features_are_another_configuration(first):
    """Accept a folder from before features could be named, as one without features."""
    file = first / matrix.SETTINGS
    settings = json.loads(file.read_text())
    assert settings.pop("features") is None
    file.write_text(json.dumps(settings))
    matrix._settle(first, settings | {"features": None})
    with pytest.raises(ValueError, match="features is None there and 'digits' here"):
        matrix._settle(first, settings | {"features": "digits"})


def test_a_model_trained_anew_is_another_configuration(tmp_path):
    network = gms_fast.load("digits")
    models = [str(tmp_path / name) for name in ("one", "two")]
    for path in models:
        gms_fast.io.save(network, path)
    out = tmp_path / "out"
    run(out, [Cell(models[0], "ddim", "uniform", 1)], data="digits", n=100)
    run(
        out, [Cell(m, "ddim", "uniform", 1) for m in models], data="digits", n=100
    )  # another model does not change the configuration
    with torch.no_grad():
        network.out[2].bias.add_(0.1)
    gms_fast.io.save(network, models[0])
    with pytest.raises(ValueError, match="inputs is "):
        run(out, [Cell(models[0], "ddim", "uniform", 1)], data="digits", n=100)


def test_a_name_is_no_path(tmp_path, monkeypatch):
    """Ignore a folder that happens to have a model's name, for instance the output folder."""
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        run("mixture-1d", CELLS[:1])


def test_fingerprint_follows_code_and_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "PACKAGE", tmp_path)
    found = set()
    for name, text in [("a.py", "1"), ("a.py", "2"), ("w.safetensors", "1"), ("w.safetensors", "2")]:
        (tmp_path / name).write_text(text)
        found.add(matrix.sources())
    assert len(found) == 4
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "sample.py").write_text("x")
    assert matrix.sources() in found


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not empty and holds no settings\.json"):
        run(tmp_path)
    with pytest.raises(ValueError, match="got 'fit' in"):
        run(tmp_path / "new", [Cell("mixture-1d", "gms:fit", "uniform", 2)])
    assert not (tmp_path / "new").exists()


def record(**fields):
    return {"model": "m", "grid": "uniform", "n": 10, "calls": fields["steps"] + 1, "origin": "abc", **fields}


def test_first_images_of_a_cell_are_kept(tmp_path):
    cell = Cell("exact-digits", "ddim", "uniform", 2)
    run(tmp_path, [cell])
    with Image.open(tmp_path / matrix.IMAGES / matrix.picture(cell)) as picture:
        assert picture.size[0] > 9 * picture.size[1] / 2
    assert json.loads((tmp_path / matrix.SETTINGS).read_text())["n"] == 200
