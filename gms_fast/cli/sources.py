"""Options that take the name of something embedded, or a path.

One rule holds for all of them. A name of an embedded data set or network means that. Everything else is a path. A name
that is also the name of a file or folder here is refused: `./digits` is the folder.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


class Source(str):
    """Text of such an option, not yet checked. Use a subclass as `type` of the option."""

    __slots__ = ()
    noun = ""  # the embedded thing

    @staticmethod
    def names() -> Collection[str]:
        """Return the embedded names."""
        raise NotImplementedError

    @property
    def path(self) -> Path:
        """File or folder that the text names, if it names one."""
        return Path(self)

    def check(self, option: str, out: Path | None) -> None:
        """Raise ValueError if the text is an embedded name and also a file or folder here.

        out: what the command writes; it is never its input.
        """
        if not os.path.lexists(self.path) or self.path == out or self not in self.names():
            return
        kind = "folder" if self.path.is_dir() else "file"
        raise ValueError(
            f"{option} {self} is {self.noun} and also a {kind} here: write ./{self.path} for the {kind}, or rename it "
            f"to use {self.noun}"
        )


class Data(Source):
    """Name of a data set, or a path of pictures, arrays or statistics."""

    __slots__ = ()
    noun = "an embedded data set"

    @staticmethod
    def names() -> Collection[str]:
        from gms_fast import data

        return data.names()


class Model(Source):
    """Name of an embedded model, or a path of one."""

    __slots__ = ()
    noun = "an embedded model"

    @staticmethod
    def names() -> Collection[str]:
        from gms_fast import io

        return io.EMBEDDED


class Subject(Model):
    """Model that `evaluate` takes: also one with exact moments, or rounded to bfloat16."""

    __slots__ = ()

    @staticmethod
    def names() -> Collection[str]:
        from gms_fast.quality import subjects

        return (*subjects.names(), *(f"{name}{subjects.ROUNDED}" for name in subjects.LEARNED))

    @property
    def path(self) -> Path:
        from gms_fast.quality import subjects

        return Path(subjects.split(self)[0])


class Features(Source):
    """Name of a feature network, an import path, or a file.

    A folder is no feature network, so a folder of that name is no doubt.
    """

    __slots__ = ()
    noun = "an embedded feature network"

    @staticmethod
    def names() -> Collection[str]:
        from gms_fast.quality import classifier, extractors

        return (extractors.PIXELS, *classifier.SHAPES)

    def check(self, option: str, out: Path | None) -> None:
        if not self.path.is_dir():
            super().check(option, out)


def settle(args: argparse.Namespace) -> None:
    """Check every source among the options, and make it plain text.

    Raises ValueError that names the option.
    """
    for name, given in vars(args).items():
        if isinstance(given, Source):
            given.check(f"--{name.replace('_', '-')}", getattr(args, "out", None))
            setattr(args, name, str(given))


def refuse_same(samples: str, reference: str) -> None:
    """Raise ValueError if two sources of pictures are one file, folder, run or data set."""
    if samples == reference or _origin(samples) == _origin(reference):
        raise ValueError(
            f"--samples and --reference must be different pictures: got {samples} and {reference}, which are the same"
        )


def _origin(source: str) -> Path | str:
    """Return a named data set itself, else the file or folder, links resolved.

    The statistics that a run of `generate` writes stand for its folder.
    """
    from gms_fast.generation import settings

    if source in Data.names():
        return source
    path = Path(source).resolve()
    return path.parent if path.name == settings.WHOLE and (path.parent / settings.FILE).exists() else path
