"""Hooks of the site: formulas as MathML, help texts, and pictures from elsewhere."""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

BORROWED = {"graph.png": "integrations/comfyui/graph.png"}  # pictures of pages that lie elsewhere and are put in here

FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)
SIGNS = {  # as latex2mathml sets them, and as they should be: an operator, and bars close to what they enclose
    "<mi>&#x000B1;</mi>": "<mo>&#x000B1;</mo>",
    '<mo stretchy="false">&#x0007C;</mo>': '<mo stretchy="false" lspace="0em" rspace="0em">&#x0007C;</mo>',
}
NUMBER = re.compile(r"\\tag\{(\w+)\}\s*$")
PAGE = re.compile(r"docs/([\w-]+)\.md(?!\w)")
LINK = re.compile(r'href="([\w-]+)\.md(#[^"]*)?"')
HELP = re.compile(r"<!-- help: ([\w-]+) -->")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures that lie outside the pages' folder."""
    for name, place in BORROWED.items():
        files.append(File.generated(config, name, abs_src_path=place))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put in the help texts that a page asks for."""
    return HELP.sub(lambda found: f"```text\n{help_of(found[1])}```", markdown)


def help_of(command: str) -> str:
    """Return the help text of a subcommand of gms-fast, 88 columns wide."""
    import argparse
    import functools

    from gms_fast.cli import COMMANDS

    module = COMMANDS[command]
    wide = functools.partial(argparse.HelpFormatter, width=88)
    parser = argparse.ArgumentParser(f"gms-fast {command}", description=module.SUMMARY, formatter_class=wide)
    module.add_arguments(parser)
    return parser.format_help()


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Replace formulas by MathML, which browsers draw without a script, and mend links."""
    if page.file.src_uri.endswith(".ipynb"):  # mkdocs knows the links of Markdown alone
        content = LINK.sub(r'href="../\1/\2"', content)
    if page.file.src_uri.startswith("reference/"):  # docstrings name pages by their file
        content = PAGE.sub(r'<a href="../../\1/">\g<0></a>', content)
    return FORMULA.sub(lambda found: formula(html.unescape(found[2]).strip(), block=found[1] == "div"), content)


def formula(latex: str, *, block: bool) -> str:
    r"""Convert one formula; the number of a `\\tag` stands at its right."""
    number = NUMBER.search(latex)
    drawn = convert(NUMBER.sub("", latex), display="block" if block else "inline")
    for given, wanted in SIGNS.items():
        drawn = drawn.replace(given, wanted)
    if not block:
        return drawn
    side = f'<span class="equation-number">({number[1]})</span>' if number else ""
    return f'<div class="equation">{drawn}{side}</div>'
