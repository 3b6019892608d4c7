"""The site: it builds without a warning, and its reference has every public name once."""

import html
import os
import re
import subprocess
import sys

import pytest
from places import ROOT
from public import public

DOCS = ROOT / "docs"
DEFAULT = re.compile(r"default:\s*(?:<span[^>]*>)?<code>(.*?)</code>", re.DOTALL)
REFERENCE = {page.name: page.read_text() for page in (DOCS / "reference").glob("*.md")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` builds it."""
    pytest.importorskip("mkdocs_jupyter")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert not re.findall(r"^(?:WARNING|ERROR).*", ran.stderr, re.MULTILINE), ran.stderr
    return folder


@pytest.mark.slow(60)
def test_it_builds_without_a_warning(site):
    assert (site / "index.html").is_file()


@pytest.mark.slow(60)
def test_no_page_asks_another_server(site):
    """Fonts, scripts and formulas come with the site."""
    asked = r'<(?:script|img|iframe)[^>]*\ssrc="(https?:[^"]*)|<link[^>]*rel="stylesheet"[^>]*href="(https?:[^"]*)'
    assert not [page for page in site.rglob("*.html") if re.search(asked, page.read_text())]


@pytest.mark.slow(60)
def test_formulas_are_drawn(site):
    page = (site / "mathematics" / "gms" / "index.html").read_text()
    assert page.count("<math ") > 20
    assert "arithmatex" not in page
    assert "(5)</span>" in page


@pytest.mark.slow(60)
def test_help_texts_are_put_in(site):
    page = (site / "commands" / "index.html").read_text()
    assert "<!-- help" not in page
    assert page.count("usage: gms-fast") == len(re.findall("<!-- help", (DOCS / "commands.md").read_text()))


@pytest.mark.slow(60)
def test_defaults_are_values(site):
    """No list of parameters shows the name of a constant of the code."""
    pages = {page.parent.name: page.read_text() for page in (site / "reference").rglob("index.html")}
    shown = {
        name: {html.unescape(re.sub("<[^>]+>", "", value)) for value in DEFAULT.findall(page)}
        for name, page in pages.items()
    }
    assert {"0.0002", "'cosine'", "0.999"} <= shown["training"]  # the learning rate, its decay and the average
    assert {"'exact'", "0.3333333333333333"} <= shown["ops"]
    assert "the model's" in shown["sampling"]
    found = [value for page in shown.values() for value in page if re.fullmatch(r"UNSAID|[A-Za-z]+\.[a-z_]+", value)]
    assert {*found} <= {"torch.float32"}


@pytest.mark.slow(60)
def test_functions_are_not_shown_as_modules(site):
    """Some functions have the name of the module that they are in."""
    pages = [page.read_text() for page in (site / "reference").rglob("index.html")]
    assert sum(page.count("doc-function") for page in pages) > 50
    assert not any("doc-module" in page for page in pages)


def test_commands_are_all_listed():
    from gms_fast.cli import COMMANDS

    assert re.findall(r"<!-- help: ([\w-]+) -->", (DOCS / "commands.md").read_text()) == list(COMMANDS)


def test_every_public_name_is_in_the_reference_once():
    named = [name for text in REFERENCE.values() for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]
    assert len(named) == len(set(named))
    places = public()
    shown = {id(places[name]) for name in named}
    assert {name for name, value in places.items() if id(value) not in shown} == set()
    assert len(shown) == len(named)


def test_the_index_of_the_reference_links_to_every_name():
    named = {name for text in REFERENCE.values() for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    assert named == set(re.findall(r"\]\[(gms_fast\.[\w.]+)\]", REFERENCE["index.md"]))
