"""Output files of `gms-fast edit`: a strip of images and results, or a folder of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gms_fast.cli import drawing, options

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg")
STRIP = "strip.png"
HINT = " (a name with a suffix means a file; create the folder first to use it as a folder)"


class Target(NamedTuple):
    """Place of the results: the strip `out`, or the folder `out` with one file per name."""

    out: Path
    names: list[str]

    @property
    def files(self) -> list[Path]:
        """All files to write; the strip is the last."""
        return [*(self.out / name for name in self.names), self.out / STRIP] if self.names else [self.out]

    def freed(self) -> Target:
        """Return itself, or if one of its files exists a new place beside it; folders are created."""
        if not any(file.exists() for file in self.files):
            return self
        out = drawing.spare(self.out, "" if self.names else self.out.suffix)
        if self.names:
            out.mkdir()
        return self._replace(out=out)


def target(out: Path, stems: list[str], n: int) -> Target:
    """Return the target of n results for each image, with the images' names."""
    if out.suffix and not out.is_dir():
        return Target(out, [])
    digits = len(str(n - 1))
    ends = [""] if n == 1 else [f"-{j:0{digits}}" for j in range(n)]
    names = [f"{stem}{end}.png" for stem in stems for end in ends]
    for name, times in Counter([*names, STRIP]).items():
        if times > 1:
            raise ValueError(f"images must have different names for their results in --out {out}: got {name} twice")
    return Target(out.resolve() if out.name in ("", "..") else out, names)


def check(target: Target, inputs: list[Path], *, overwrite: bool) -> None:
    """Raise ValueError or OSError unless the command may write there; inputs are never replaced."""
    out, read = target.out, {path.resolve() for path in inputs}
    for file in target.files:
        if file.resolve() in read:
            raise ValueError(f"--out must not replace an input image: got {file}")
    if not target.names:
        options.check_file(out, SUFFIXES, overwrite=overwrite, hint=HINT)
        return
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: there is no folder {out.parent}")
    if out.exists() and not out.is_dir():
        raise FileExistsError(
            f"--out {out} is a file, but must be a folder or a name that ends in {' or '.join(SUFFIXES)}"
        )
    for file in target.files:
        if file.is_dir():
            raise FileExistsError(f"--out: {file} is a folder, but an image must be written there")
        if file.exists() and not overwrite:
            raise FileExistsError(f"--out: {file} exists: choose another folder or add --force")


@contextmanager
def held(target: Target) -> Iterator[None]:
    """Lock the output for this process; a folder is created, and removed if it stays empty."""
    from gms_fast.storage import locks

    if not target.names:
        with locks.locked_file(target.out):
            yield
        return
    fresh = not target.out.exists()
    try:
        with locks.locked_folder(target.out):
            yield
    finally:
        if fresh:
            with suppress(OSError):
                target.out.rmdir()


def write(
    target: Target, results: Tensor, n: int, before: list[Tensor], after: list[Tensor], written: list[Path]
) -> None:
    """Write the results, n per image, and the strip with the columns `before` and `after`.

    The columns are (N, C, H, W) each. `written` receives each file once it is complete.
    """
    import torch

    from gms_fast.images import save_image, save_images

    for name, result in zip(target.names, results, strict=False):
        save_image(result, target.out / name)
        written.append(target.out / name)
    cells: list[Tensor] = []
    for i, row in enumerate(results.split(n)):
        cells += [column[i] for column in before]
        cells += [*row]
        cells += [column[i] for column in after if len(row) == n]
    save_images(torch.stack(cells), target.files[-1], columns=len(before) + n + len(after))
    written.append(target.files[-1])
