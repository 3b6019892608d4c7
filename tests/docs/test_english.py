"""The pages' sentences are short: 18 words on average at most."""

import pytest

from bench.docs import english

PAGES = english.pages()


def test_pages_are_found():
    assert {"README.md", "index.md", "heads.md", "gms.md", "quality.md"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_are_short(page):
    assert 0 < english.mean(page.read_text()) <= english.MOST


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One two three. Four five!", ["One two three.", "Four five!"]),
        ("See [the page](a/b.md) and `a b c`.", ["See the page and code."]),
        ("# Title\n\nA b.\n\n| x | y |\n|---|---|\n\n```python\nx = 1\n```\n", ["A b."]),
        ("- one thing\n- another thing, see $x + y$\n", ["one thing", "another thing, see code"]),
        ("The formula\n\n$$ a = b. $$\n\nholds here.", ["The formula", "holds here."]),
    ],
)
def test_sentences_are_found(text, found):
    assert english.sentences(text) == found


def test_words_are_counted():
    assert english.mean("One two three four. One two.") == 3
