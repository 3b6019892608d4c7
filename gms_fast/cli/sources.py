"""Options that take the name of something embedded, or a path.

All of them follow one rule. The name of an embedded data set or network refers to the embedded one. Everything else is
a path. If a file or folder in the working directory has the same name, it is refused: write `./digits` for a path.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


class Source(str):
    """Value of such an option before its check. Use a subclass as the `type` of the option."""

    __slots__ = ()
    noun = ""  # what the embedded thing is called in messages

    @staticmethod
    def names() -> Collection[str]:
        """Return the embedded names."""
        raise NotImplementedError

    @property
    def path(self) -> Path:
        """File or folder that the value names, if it names one."""
        return Path(self)

    def check(self, option: str, out: Path | None) -> None:
        """Raise ValueError if the value is an embedded name and also a file or folder here.

        out: output of the command, which is never its input.
        """
        if not os.path.lexists(self.path) or self.path == out or self not in self.names():
            return
        kind = "folder" if self.path.is_dir() else "file"
        raise ValueError(
            f"{option} {self} is {self.noun} and also a {kind} here: write ./{self.path} for the {kind}, or rename it "
            f"to use {self.noun}"
        )


class Data(Source):
    """Name of a data set, or path of images, arrays or statistics."""

    __slots__ = ()
    noun = "an embedded data set"

    @staticmethod
    def names() -> Collection[str]:
        from gms_fast import data

        return data.names()


class Model(Source):
    """Name of an embedded model, or path of a model."""

    __slots__ = ()
    noun = "an embedded model"

    @staticmethod
    def names() -> Collection[str]:
        from gms_fast import io

        return io.EMBEDDED


class Subject(Model):
    """Model for `evaluate`, which also accepts models with exact moments or rounded to bfloat16."""

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

    A folder is never a feature network, so a folder of the same name causes no ambiguity.
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
    """Check every source among the options, and convert it to a plain string.

    Raises ValueError that names the option.
    """
    for name, given in vars(args).items():
        if isinstance(given, Source):
            given.check(f"--{name.replace('_', '-')}", getattr(args, "out", None))
            setattr(args, name, str(given))


def refuse_same(samples: str, reference: str) -> None:
    """Raise ValueError if two sources of images are the same file, folder, run or data set."""
    if samples == reference or _origin(samples) == _origin(reference):
        raise ValueError(
            f"--samples and --reference must be different images: got {samples} and {reference}, which are the same"
        )


def _origin(source: str) -> Path | str:
    """Return the name of a data set, or the path of a file or folder with links resolved.

    For the statistics file of a `generate` run, the path is that of the run's folder.
    """
    from gms_fast.generation import settings

    if source in Data.names():
        return source
    path = Path(source).resolve()
    return path.parent if path.name == settings.WHOLE and (path.parent / settings.FILE).exists() else path
