"""Count words a sentence in the pages: `python -m bench.docs.english [FILE ...]`.

Prints mean and longest sentence of each page, and the longest sentence itself with --longest. Code, tables, formulas,
headings and links' addresses do not count.
"""

import argparse
import re
from pathlib import Path

from bench.records.checkout import ROOT

MOST = 18  # words that a sentence of a page may have on average
LEFT_OUT = [
    re.compile(pattern, re.DOTALL | re.MULTILINE)
    for pattern in (
        r"^ *```.*?^ *```",  # code
        r"<!--.*?-->",
        r"\$\$.*?\$\$",
        r"^ *\|.*?$",  # tables
        r"^#.*?$",
        r"^ *(:::|!!!|\?\?\?|===|--8<--).*?$",  # directives
        r"!\[[^\]]*\]\([^)]*\)(\{[^}]*\})?",  # pictures
    )
]
LINK = re.compile(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
CODE = re.compile(r"`[^`\n]*`|\$[^$\n]*\$")
ITEM = re.compile(r"^ *(?:[-*]|\d+\.) +", re.MULTILINE)
END = re.compile(r"(?<=[.!?:])[*_)\"]*\s+|\n\s*\n")


def pages() -> list[Path]:
    """Return the README and the pages of the site that people write."""
    found = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "mathematics").glob("*.md")]
    return sorted(page for page in found if page.name not in ("changelog.md", "comfyui.md"))


def sentences(text: str) -> list[str]:
    """Return the sentences of a page, each piece of code and each formula as one word."""
    for pattern in LEFT_OUT:
        text = pattern.sub("\n\n", text)
    text = ITEM.sub("\n\n", CODE.sub("code", LINK.sub(r"\1", text)))
    found = (" ".join(part.split()) for part in END.split(text))
    return [part for part in found if len(words(part)) > 1]


def words(sentence: str) -> list[str]:
    """Return the words of a sentence; signs and dashes by themselves are none."""
    return [word for word in sentence.split() if any(map(str.isalnum, word))]


def mean(text: str) -> float:
    """Return the mean number of words of a page's sentences; 0 if it has none."""
    lengths = [len(words(sentence)) for sentence in sentences(text)]
    return sum(lengths) / len(lengths) if lengths else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="pages to count (default: README and all of docs/)")
    parser.add_argument("--longest", action="store_true", help="print the longest sentence of each page")
    args = parser.parse_args()
    for page in args.files or pages():
        text = page.read_text()
        longest = max(sentences(text), key=lambda sentence: len(words(sentence)), default="")
        print(f"{mean(text):5.1f} mean {len(words(longest)):4} longest  {page}")
        if args.longest:
            print(f"      {longest}")


if __name__ == "__main__":
    main()
