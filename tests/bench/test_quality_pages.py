"""Tests of docs/quality.md and its appendices against the committed records."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image
from places import ROOT

from bench.docs import (
    quality,
    quality_legend,
    quality_summaries,
    quality_tables,
    quality_wording,
    solver_names,
    style,
)
from gms_fast.quality import report
from gms_fast.quality.cells import CONTROLS, GUIDE

GROUPS = sorted(folder.name for folder in quality_tables.RECORDS.iterdir() if folder.is_dir())
APPENDICES = quality.pages()[1:]
BESIDE = {"17.4", "21.9", "97.5", "98.6", "42.2", "3.06"}  # the paper; test_classifiers; search_gms.json
DECIMAL = re.compile(r"(?<![\w./])\d+\.\d+")
COMMENT = re.compile(r"<!-- begin.*?<!-- end -->", re.DOTALL)


def slug(heading):
    """Return the anchor of a heading, as a code host and a site make it."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")


def anchors(path):
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)}


def test_pages_and_pictures_show_the_committed_records():
    assert quality.out_of_date() == []


def test_every_group_has_an_appendix_with_all_its_tables():
    blocks = {block[1:3]: path.name for path in APPENDICES for block in quality.BLOCK.findall(path.read_text())}
    for group in GROUPS:
        assert blocks["group", group] == f"appendix-{group}.md"
    assert len(quality.BLOCK.findall(quality.PAGE.read_text())) >= 6


def test_report_is_short_and_leads_to_every_appendix():
    text = quality.PAGE.read_text()
    assert len(text.split()) < 4500
    for path in APPENDICES:
        assert f"(quality/{path.name})" in text


@pytest.mark.parametrize("path", quality.pages(), ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_sections_that_other_pages_name_exist():
    """docs/decisions.md and docs/heads.md name sections of the report in words."""
    named = {"The last steps of the grid", "Variance without training", "Networks from other libraries"}
    assert {slug(name) for name in named} <= anchors(quality.PAGE)


def test_every_picture_of_the_folder_is_drawn_and_shown():
    texts = "".join(path.read_text() for path in quality.pages())
    files = set(quality.FOLDER.glob("*.png"))
    assert files == set(quality.pictures())
    for file in files:
        assert f"{file.name})" in texts
        with Image.open(file) as picture:
            assert picture.width >= 1300


@pytest.mark.parametrize("group", GROUPS)
def test_solvers_of_a_model_have_names_of_their_own(group):
    """But for tables of their own for each number of evaluations, which share a row."""
    texts = defaultdict(set)
    for r in quality_tables.records(group):
        assert r["model"] in quality_tables.MODELS
        if not r["solver"].startswith("ggdm"):
            texts[r["model"], solver_names.name(r["solver"])].add(r["solver"])
    assert all(len(found) == 1 for found in texts.values())


def test_all_measures_are_shown():
    assert quality_tables.MEASURES.keys() == set(report.SHOWN)
    assert quality_legend.MEASURES.keys() == set(report.SHOWN)


@pytest.mark.parametrize("group", GROUPS)
def test_legends_explain_the_grids_and_controls_of_their_group(group):
    found = quality_tables.records(group)
    legend = quality_legend.text(found)
    for r in found:
        if r["solver"] in (*CONTROLS, GUIDE):
            assert quality_legend.SHOWN_CONTROLS[r["solver"]] in legend
        else:
            assert any(word in solver_names.grid(r["grid"]) for word in quality_legend.GRIDS)


@pytest.mark.parametrize("name", ["bases", "components", "eigenbasis", "jacobian"])
def test_readable_names_leave_the_figures_as_they_are(name):
    lines = [line for line in (quality_tables.RESULTS / f"{name}.md").read_text().splitlines() if "±" in line]
    made = [line for line in quality_tables.file(name).splitlines() if "±" in line]
    cells = re.compile(r"-?\d+\.\d+ ?±\d*\.?\d*|± \d+\.\d+")
    assert [cells.findall(line) for line in lines] == [cells.findall(line) for line in made]
    assert quality_wording.reworded(quality_tables.file(name)) == quality_tables.file(name)


@pytest.mark.parametrize(
    ("solver", "name"),
    [
        ("gms:fit=free,component=element", "GMS (free fit)"),
        ("gms:fit=exact,component=sample,clip_pixel=None", "GMS (exact fit, shared component)"),
        ("gms:fit=adan,component=sample,moments=released,eps=8e-05", "GMS (released optimiser)"),
        ("gms:fit=free,component=element,covariance=mnist,switch=1.5", "GMS (free fit, covariance to 1.5)"),
        ("dpm-solver++:denoise=False", "DPM-Solver++(2M) (no final denoising)"),
        ("teleport:statistics=mnist,until=10 then er-sde", "Teleport to 10, then ER-SDE"),
        ("dpm-solver-v3:statistics=mnist,trust=-2", "DPM-Solver-v3 (trust -2)"),
    ],
)
def test_names(solver, name):
    assert solver_names.name(solver) == name
    assert solver_names.general("gms:covariance=mnist,switch=3", "mnist") == "gms:covariance=MODEL,switch=3"


def test_tables_of_strokes_are_at_the_evaluations_they_name():
    """In all of them the same strokes; strengths are the columns."""
    parts = quality_tables.parts(quality_tables.records("stroke", "digits"))
    tables = {nfe: quality_tables.table(parts[f" at {nfe} NFE"], "frechet") for nfe in (5, 10)}
    heads = {table.splitlines()[0] for table in tables.values()}
    assert heads == {"| solver | grid | strength 0.2 | strength 0.4 | strength 0.6 | strength 0.8 |"}
    assert tables[5] != tables[10]
    strokes = [line for table in tables.values() for line in table.splitlines() if line.startswith("| *the strokes* |")]
    assert len(strokes) == 2
    assert len(set(strokes)) == 1


def test_tables_show_what_the_records_hold():
    """A cell of a table, and the same cell of a summary, against the records."""
    found = quality_tables.records("calls", "mnist")
    values = [r["frechet"] for r in found if r["solver"].endswith("trust=-2") and r["calls"] == 5]
    mean, spread = report.spread(values)
    row = next(line for line in quality_tables.table(found, "frechet").splitlines() if "v3 (trust -2)" in line)
    assert row.startswith(f"| DPM-Solver-v3 (trust -2) | power 0.7 | {mean:.2f} ±{spread:.2f} |")
    learned = quality_summaries.summary("learned")
    assert f"| DPM-Solver-v3 (trust -2) | power 0.7 | {mean:.2f} ± {spread:.2f} |" in learned
    assert f"**{mean:.2f}**" in quality_summaries.summary("choices")


def test_columns_by_steps_name_the_evaluations():
    found = quality_tables.records("digits", "digits")
    assert all(r["calls"] == r["steps"] + 1 for r in found if r["solver"] not in (*CONTROLS, GUIDE))
    head = quality_tables.table(found, "frechet").splitlines()[0]
    assert head == "| solver | grid | K = 5 (6 NFE) | K = 10 (11 NFE) | K = 20 (21 NFE) |"


def test_rows_without_records_are_empty_and_unknown_groups_refused():
    assert quality_summaries.figure([]) == ""
    assert quality_summaries.figure([4.0, 5.0, 4.5]) == "4.50 ± 0.50"
    assert quality_summaries.figure([98.0, 98.0]) == "98.0"
    with pytest.raises(SystemExit, match="of which nothing is committed"):
        quality_tables.records("digits", "no model")


def figures(texts):
    """Return the numbers of tables, by the number of decimals to which they are rounded."""
    numbers = [float(n) for text in texts for n in re.findall(r"(?<![\w.])-?\d+\.?\d*(?!\w)", text)]
    return {d: {f"{abs(n):.{d}f}" for n in numbers} for d in range(1, 5)}


def test_figures_of_the_prose_stand_in_a_table():
    """Decimals of the prose are those of tables, rounded, except for those in `BESIDE`."""
    shown = figures(block for path in APPENDICES for block in COMMENT.findall(path.read_text()))
    for path in quality.pages():
        prose = re.sub(r"`[^`]*`|```.*?```", "", COMMENT.sub("", path.read_text()), flags=re.DOTALL)
        found = set(DECIMAL.findall(prose)) - BESIDE
        assert not {n for n in found if n not in shown[len(n.partition(".")[2])]}, path.name


def test_stale_pictures_are_found(tmp_path):
    file = tmp_path / "plot.png"
    assert not style.current(file, [1])
    style.drawn(lambda figure: figure.subplots(), file, [1], height=2)
    assert style.current(file, [1])
    assert not style.current(file, [2])


def test_looks_differ_in_colour_and_marker():
    looks = [value for value in vars(style).values() if isinstance(value, style.Look)]
    assert len(looks) == 7
    assert len({look.colour for look in looks}) == 7
    assert len({(look.marker, str(look.line)) for look in looks}) == 7


def test_blocks_are_made_anew_wherever_they_stand():
    text = "a\n<!-- begin part bases; exact-mnist5k, frechet; GMS | pixels -->\nold\n<!-- end -->\nb\n"
    made = quality.page(text)
    assert made == quality.page(made)
    assert made.splitlines()[2] == "| solver | basis | 3 NFE | 5 NFE | 10 NFE | 20 NFE |"
    assert made.splitlines()[4].startswith("| GMS | pixels | 168.5 ")
    assert Path(quality.PAGE).is_relative_to(ROOT)
