"""Run the commands of docs/editing.md: `python -m bench.docs.editing`.

Their strips are kept in docs/editing/. Their pictures are the digits `GUIDES` of mnist5k.
"""

import argparse
import os
import re
import shlex
import tempfile
from pathlib import Path

import torch

from bench.records.checkout import ROOT
from gms_fast import cli, data, images
from gms_fast.storage import atomic

PAGE, PICTURES = ROOT / "docs" / "editing.md", ROOT / "docs" / "editing"
GUIDES = (7, 1203, 2510, 4020)


def commands() -> list[list[str]]:
    """Return the words of each command on the page, after the program's name."""
    return [shlex.split(line)[1:] for line in re.findall(r"^gms-fast edit .*$", PAGE.read_text(), re.MULTILINE)]


def prepare(folder: Path) -> None:
    """Write the inputs of the commands: guides/0.png .., and mask.png, white in its lower half."""
    (folder / "guides").mkdir()
    for i, image in enumerate(data.load("mnist5k")[[*GUIDES]]):
        images.save_image(image, folder / "guides" / f"{i}.png")
    mask = torch.full((1, 28, 28), -1.0)
    mask[:, 14:] = 1
    images.save_image(mask, folder / "mask.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="edits to run (default: all of the page)")
    kinds = parser.parse_args().kinds
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        os.chdir(folder)
        for words in commands():
            if not kinds or words[1] in kinds:
                _run(words)
        os.chdir(ROOT)


def _run(words: list[str]) -> None:
    """Run a command, and keep its picture."""
    if cli.main(words):
        raise SystemExit(f"gms-fast {shlex.join(words)} failed")
    picture = Path(words[words.index("--out") + 1])
    PICTURES.mkdir(exist_ok=True)
    atomic.write_bytes(PICTURES / picture.name, picture.read_bytes())


if __name__ == "__main__":
    main()
