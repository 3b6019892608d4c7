"""The programs on the mathematics pages run, and their assertions hold."""

import re

import pytest
from places import ROOT

FOLDER = ROOT / "docs" / "mathematics"
PAGES = sorted(FOLDER.glob("*.md"))
NOTATION = ROOT / "docs" / "notation.md"
DECISIONS = ROOT / "docs" / "decisions.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_programs_check_the_equations(page):
    programs = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    assert programs
    scope: dict = {}
    for program in programs:
        assert "assert" in program
        exec(compile(program, str(page), "exec"), scope)


@pytest.mark.parametrize("page", [*PAGES, NOTATION, DECISIONS], ids=lambda page: page.stem)
def test_links_resolve(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        assert file.exists(), link
        assert not anchor or anchor in _anchors(file.read_text()), link


def _anchors(text):
    """Return the anchors that headings get on GitHub and on the site."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_first_page_leads_to_all_others():
    first = (FOLDER / "index.md").read_text()
    assert all(f"]({page.name})" in first for page in PAGES if page.stem != "index")


def test_every_numbered_equation_is_derived():
    """Every number of docs/notation.md stands on one of the pages, and no page has another."""
    tags = r"\\tag\{(\d+a?)\}"
    wanted = re.findall(tags, NOTATION.read_text())
    derived = [number for page in PAGES for number in re.findall(tags, page.read_text())]
    assert sorted(derived) == sorted(wanted)
