"""Commands of gms-fast in the sentences and tables of the pages: their options exist."""

import argparse
import re

import pytest
from places import ROOT

from gms_fast import cli

PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "bench" / "README.md"])
COMMAND = re.compile(r"`gms-fast ([a-z-]+)([^`]*)`")


def options(parser):
    """Options of a parser and of its kinds of subcommand."""
    yield from parser._option_string_actions
    for action in parser._actions:
        for kind in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            yield from options(kind)


def unknown(text):
    """Commands and options named in a text that do not exist."""
    for name, rest in COMMAND.findall(text):
        if name not in cli.COMMANDS:
            yield name
            continue
        parser = argparse.ArgumentParser()
        cli.COMMANDS[name].add_arguments(parser)
        yield from (f"{name} {option}" for option in set(re.findall(r"--[a-z-]+", rest)) - set(options(parser)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_sentences_exist(page):
    assert list(unknown(page.read_text())) == []


def test_what_does_not_exist_is_found():
    text = "`gms-fast draw`, `gms-fast edit stroke --strength 0.5 --force-it`"
    assert list(unknown(text)) == ["draw", "edit --force-it"]
