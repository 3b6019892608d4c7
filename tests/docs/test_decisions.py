"""The decision log keeps its form: numbers, dates, statuses and three parts."""

import datetime
import re

import pytest
from places import ROOT

PAGE = (ROOT / "docs" / "decisions.md").read_text()
INDEX, *ENTRIES = re.split(r"^(?=## \d+\. )", PAGE, flags=re.M)
PARTS = ["Context", "Decision", "Price"]


def _number(entry):
    return int(re.match(r"## (\d+)\. ", entry)[1])


def test_numbers_have_no_gaps():
    assert [_number(entry) for entry in ENTRIES] == list(range(1, len(ENTRIES) + 1))


@pytest.mark.parametrize("entry", ENTRIES, ids=_number)
def test_entry_has_its_parts(entry):
    heading, empty, status, *body = entry.splitlines()
    assert re.fullmatch(r"## \d+\. \S.*[^.]", heading)
    assert empty == ""
    date, replaced = re.fullmatch(r"\*(\d{4}-\d\d-\d\d) · (?:Accepted|Replaced by (\d+))\*", status).groups()
    assert datetime.date.fromisoformat(date)
    assert replaced is None or _number(entry) < int(replaced) <= len(ENTRIES)
    assert re.findall(r"^\*\*(\w+)\.\*\* \S", "\n".join(body), re.M) == PARTS


def test_dates_do_not_fall():
    dates = re.findall(r"^\*(\d{4}-\d\d-\d\d) · ", PAGE, re.M)
    assert dates == sorted(dates)


def test_index_lists_every_decision_once():
    listed = re.findall(r"^\|[^|]*\| \[(\d+\. .*?)\]\(#", INDEX, re.M)
    assert sorted(listed) == sorted(re.findall(r"^## (\d+\. .*)$", PAGE, re.M))


def test_cited_decisions_exist():
    for folder, pattern in (("gms_fast", "*.py"), ("csrc", "*.cu"), ("locks", "*.py"), ("docs", "*.md")):
        for file in (ROOT / folder).rglob(pattern):
            for cited in re.findall(r"decisions?(?:\.md, | |\.md \()(\d+)\b", file.read_text()):
                assert 1 <= int(cited) <= len(ENTRIES), file
