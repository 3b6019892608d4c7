"""Tour notebook: it runs, and is stored clean and with its images."""

import ast
import base64
import json
import re

import pytest
from places import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"
NOTEBOOK = json.loads(TOUR.read_text())
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
PICTURES = ("digits-plot", "pixel-plot", "exact-plot", "strokes-plot")
OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999"}
PLACE = re.compile(r"(?<![\w.])/(home|root|tmp|work|Users|usr|opt|mnt)\b|[A-Z]:\\\\")  # of one machine


def text(cell):
    return "".join(cell["source"])


def outputs(cell, kind):
    return [output for output in cell["outputs"] if output["output_type"] == kind]


def test_notebook_is_stored_without_counts_and_places():
    assert all(cell["execution_count"] is None for cell in CODE)
    assert all(cell["metadata"] == {} for cell in NOTEBOOK["cells"])
    assert set(NOTEBOOK["metadata"]) == {"kernelspec", "language_info"}
    said = "".join(text(cell) for cell in NOTEBOOK["cells"])
    said += "".join("".join(output["text"]) for cell in CODE for output in outputs(cell, "stream"))
    assert not PLACE.search(said)


def test_notebook_is_stored_with_its_pictures():
    drawn = {cell["id"]: outputs(cell, "display_data") for cell in CODE if outputs(cell, "display_data")}
    assert tuple(drawn) == PICTURES
    for (picture,) in drawn.values():
        assert base64.b64decode(picture["data"]["image/png"]).startswith(b"\x89PNG")
    assert not any(outputs(cell, "error") for cell in CODE)


def test_colours_can_be_told_apart_by_everybody():
    used = set(re.findall(r"#[0-9A-Fa-f]{6}\b", "".join(map(text, CODE))))
    assert used
    assert used <= OKABE_ITO


def test_links_lead_to_pages_of_the_documentation():
    pages = re.findall(r"\]\(([\w./-]+\.md)\)", "".join(text(cell) for cell in NOTEBOOK["cells"]))
    assert pages
    assert [page for page in pages if not (TOUR.parent / page).is_file()] == []


def test_digits_are_drawn_in_three_lines():
    assert [type(node) for node in ast.parse(text(CODE[0])).body] == [ast.Import, ast.Assign, ast.Assign]


@pytest.mark.slow(60)
def test_notebook_runs_and_draws_the_same_kinds_of_pictures(tmp_path):
    """Run it as a reader does; its step is checked against `ops.gms_step` inside."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(TOUR, 4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    kinds = [[output.output_type for output in cell.outputs] for cell in code]
    assert kinds == [[output["output_type"] for output in cell["outputs"]] for cell in CODE]
    assert not list(tmp_path.iterdir())
