"""Docstrings: a short first line everywhere, and full sections for every public name."""

import ast
import dataclasses
import inspect
import re
from types import FunctionType

import pytest
from places import ROOT
from public import distinct

FOLDERS = ("gms_fast", "kernels", "integrations", "bench", "tests", "docs", "locks")
FILES = [ROOT / "setup.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]
PUBLIC = distinct()
LONGEST = 90
QUESTION = re.compile(r"(What|Whether|Where|How|Why|Which|When|Who)\b")
MISREAD = re.compile(r"\s*(?=\S)[^:\n]* [^:\n]*:")  # starts of Returns that the site takes for a type
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Examples|Note|References):$", re.MULTILINE)
METHOD = (FunctionType, classmethod, staticmethod, property)


def faults_of_summary(text):
    """Say what is wrong with the first line of a docstring."""
    first, _, rest = inspect.cleandoc(text).partition("\n")
    if len(first) > LONGEST:
        yield f"{len(first)} characters in the summary"
    if rest and rest.partition("\n")[0].strip():
        yield "no empty line after the summary"
    if not first.endswith("."):
        yield "the summary ends without a full stop"
    if QUESTION.match(first):
        yield "the summary begins with a question word"


def docstrings(source):
    """(line, docstring) of the module, classes and functions of a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def sections(text):
    """The text of each section, by its title."""
    parts = SECTION.split(inspect.cleandoc(text))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def parameters(value):
    """Names that a caller may give."""
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value) if field.init]
    names = inspect.signature(value).parameters
    return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]


def described(section):
    """Names that a section of arguments describes."""
    return set(re.findall(r"^    \*{0,2}(\w+)(?: \([^\n]*?\))?: \S", section, re.MULTILINE))


def faults_of_public(value):
    """Say what the docstring of a public function or class lacks."""
    yield from faults_of_summary(value.__doc__ or "")
    said = sections(value.__doc__ or "")
    given, named = set(parameters(value)), described(said.get("Args", "") + said.get("Attributes", ""))
    if given - named:
        yield f"no description of {', '.join(sorted(given - named))}"
    if extra := described(said.get("Args", "")) - given:
        yield f"describes {', '.join(sorted(extra))}, which it does not take"
    if isinstance(value, FunctionType) and inspect.signature(value).return_annotation not in (None, "None"):
        yield from [] if "Returns" in said else ["no section Returns"]
    if MISREAD.match(said.get("Returns", "")):
        yield "Returns begins with words that the site shows as a type"
    if given and "Raises" not in said and not hasattr(value, "_fields"):
        yield "no section Raises"
    if ">>> " not in said.get("Examples", ""):
        yield "no example"


def methods(value):
    """Public methods that a class defines itself and explains, by name."""
    own = {name: made for name, made in vars(value).items() if isinstance(made, METHOD) and not name.startswith("_")}
    plain = {name: getattr(made, "fget", None) or getattr(made, "__func__", made) for name, made in own.items()}
    return {name: made for name, made in plain.items() if made.__doc__}


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_summaries_are_short(file):
    found = [(line, fault) for line, text in docstrings(file.read_text()) for fault in faults_of_summary(text)]
    assert found == []


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_explained(name):
    assert list(faults_of_public(PUBLIC[name])) == []


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if isinstance(value, type)])
def test_public_methods_are_explained(name):
    for method in methods(PUBLIC[name]).values():
        assert list(faults_of_summary(method.__doc__)) == []
        if "Args" in (said := sections(method.__doc__)):
            assert set(parameters(method)) <= described(said["Args"])


def test_faults_are_found():
    def bad(a: int) -> int:
        return a

    bad.__doc__ = "Whether this is\na good docstring\n"
    assert list(faults_of_public(bad)) == [
        "no empty line after the summary",
        "the summary ends without a full stop",
        "the summary begins with a question word",
        "no description of a",
        "no section Returns",
        "no section Raises",
        "no example",
    ]
    assert list(faults_of_summary("A" * LONGEST + ".")) == ["91 characters in the summary"]
    for returns, misread in {
        "Tensor (n, *): x": True,
        "Two of these:\n- a": True,
        "Graphed: a callable.": False,
    }.items():
        bad.__doc__ = f"Return it.\n\nReturns:\n    {returns}\n"
        assert any("as a type" in fault for fault in faults_of_public(bad)) == misread
