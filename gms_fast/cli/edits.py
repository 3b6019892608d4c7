"""Kinds of `gms-fast edit`: their options, what they draw, and what the strip shows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gms_fast.cli import guides, options

if TYPE_CHECKING:
    from torch import Tensor


class Edit:
    """Results of one kind of edit: args.n for each image.

    Result j of image i is sample i n + j of the seed.

    Attributes:
        rows: Images to edit (N, C, H, W).
        before: Columns of the strip to the left of the results.
        after: Columns of the strip to the right of the results.
        batches: Results drawn so far.
        noise: x_T of each batch, if the kind stores it.
    """

    summary = ""
    n, steps, solver, strength = 1, 10, "gms", "0.5"  # defaults

    def __init__(self, args: argparse.Namespace, pictures: Tensor) -> None:
        self.args, self.rows = args, pictures
        self.before, self.after = [pictures], list[Any]()
        self.batches: list[Tensor] = []
        self.noise: list[Tensor] = []  # x_T of each batch, for --noise

    @property
    def count(self) -> int:
        """Number of results."""
        return len(self.before[0]) * int(self.args.n)

    @classmethod
    def add(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options that not all kinds have."""
        parser.set_defaults(mask=None, noise=None)
        add = parser.add_argument
        add("--n", type=options.positive, default=cls.n, help=f"number of results per image (default: {cls.n})")
        add("--seed", type=options.seed, default=0, help=options.SEED)

    @classmethod
    def stems(cls, files: list[Path]) -> list[str]:
        """Return names of the edited images, for the files of results."""
        return [file.stem for file in files]

    def parts(self) -> Iterator[tuple[int, Tensor]]:
        """Yield batches with one row per result, each with the index of its first result."""
        rows, size = self.rows.repeat_interleave(self.args.n, 0), self.args.batch_size
        return ((start, rows[start : start + size]) for start in range(0, len(rows), size))

    def labels(self, start: int, count: int) -> list[int]:
        """Return the classes of results: those of their images."""
        given = self.args.labels
        return [given[k // self.args.n % len(given)] for k in range(start, start + count)]

    def draw(self, model: Callable[..., Any], rows: Tensor, start: int, **same: Any) -> Tensor:
        """Return the results of a batch; `same` holds arguments that all kinds share."""
        from gms_fast import editing

        return editing.stroke(model, rows, seed=self.args.seed, sample_offset=start, **same)

    def said(self) -> str:
        """Return a line about the results, if there is one."""
        return ""


class Stroke(Edit):
    """Stroke synthesis."""

    summary = "Turn a drawing or another guide into an image: add noise to it and sample from there (SDEdit)."

    def __init__(self, args: argparse.Namespace, pictures: Tensor) -> None:
        super().__init__(args, pictures)
        painting = {"colours": args.colours, "brush": args.brush}
        chosen = {name: value for name, value in painting.items() if value is not None}
        if chosen and not args.paint:
            raise ValueError(f"--{' and --'.join(chosen)} must be given together with --paint")
        if args.paint:
            from gms_fast import editing

            self.rows = editing.paint(pictures, **chosen)
            self.before = [pictures, self.rows]

    @classmethod
    def add(cls, parser: argparse.ArgumentParser) -> None:
        super().add(parser)
        add = parser.add_argument
        repeats = "number of passes, each starting from the previous result (default: 1)"
        add("--repeats", type=options.positive, default=1, metavar="R", help=repeats)
        add("--paint", action="store_true", help="first repaint each image with a wide brush and few colours")
        add(
            "--colours",
            type=options.positive,
            metavar="N",
            help="number of colours for --paint, from 1 to 256 (default: 6)",
        )
        brush = "brush width for --paint, as a share of the shorter side, above 0 and up to 1 (default: 0.1)"
        add("--brush", type=options.finite, metavar="SHARE", help=brush)

    def draw(self, model: Callable[..., Any], rows: Tensor, start: int, **same: Any) -> Tensor:
        return super().draw(model, rows, start, repeats=self.args.repeats, **same)


class Vary(Edit):
    """Variations."""

    summary = "Draw variations of an image: add noise to it several times and sample from there."
    n, strength = 8, "0.4"


class Inpaint(Edit):
    """Inpainting."""

    summary = "Redraw part of an image and keep the rest exactly (RePaint)."
    strength = "1"

    def __init__(self, args: argparse.Namespace, pictures: Tensor) -> None:
        super().__init__(args, pictures)
        self.mask = guides.mask(args.mask, (pictures.shape[2], pictures.shape[3]), resize=args.resize)
        self.before = [pictures, pictures * (1 - self.mask)]

    @classmethod
    def add(cls, parser: argparse.ArgumentParser) -> None:
        super().add(parser)
        add = parser.add_argument
        wanted = "mask: white is redrawn, black is kept, and the lighter a grey area is, the more it may change; "
        wanted += "in JPEG files and with --resize, nearly black and nearly white count as black and white"
        add("--mask", type=Path, required=True, metavar="IMAGE", help=wanted)
        resample = "number of passes over each step, for a better fit at the price of more network calls (default: 1)"
        add("--resample", type=options.positive, default=1, metavar="R", help=resample)

    def draw(self, model: Callable[..., Any], rows: Tensor, start: int, **same: Any) -> Tensor:
        from gms_fast import editing

        args = self.args
        return editing.inpaint(
            model, rows, self.mask, resample=args.resample, seed=args.seed, sample_offset=start, **same
        )


class Invert(Edit):
    """Inversion, followed by sampling back."""

    summary = "Find the noise that leads to an image, sample from it, and report the reconstruction error."
    steps, solver, strength = 50, "dpm-solver++", "1"

    @classmethod
    def add(cls, parser: argparse.ArgumentParser) -> None:
        parser.set_defaults(n=1, mask=None)
        parser.add_argument(
            "--noise", type=Path, metavar="FILE.npz", help="file in which to store the noise, as the array x_T"
        )

    def draw(self, model: Callable[..., Any], rows: Tensor, start: int, **same: Any) -> Tensor:
        import gms_fast
        from gms_fast import editing

        noise = editing.invert(model, rows, **same)
        times = editing.timesteps(model, same["steps"], strength=same["strength"], solver=same["solver"])
        back = noise
        if times:
            back = gms_fast.sample(
                model, timesteps=times, solver=same["solver"], x_T=noise, condition=same["condition"]
            )
        self.noise.append(noise.float().cpu())
        return back

    def said(self) -> str:
        import torch

        error = (torch.cat(self.batches) - self.rows).square().mean().sqrt().item()
        return f"reconstruction error: rms {error:.3g} in [-1, 1], {error * 127.5:.3g} of 255 grey levels"


class Interpolate(Edit):
    """Interpolation."""

    summary = "Interpolate between two images, through the noise that leads to each of them."
    n, steps, solver, strength = 7, 50, "dpm-solver++", "1"

    def __init__(self, args: argparse.Namespace, pictures: Tensor) -> None:
        super().__init__(args, pictures)
        self.before, self.after = [pictures[:1]], [pictures[1:]]

    @classmethod
    def add(cls, parser: argparse.ArgumentParser) -> None:
        parser.set_defaults(mask=None, noise=None)
        parser.add_argument(
            "--n",
            type=options.several,
            default=cls.n,
            help=f"number of results, including both ends (default: {cls.n})",
        )

    @classmethod
    def stems(cls, files: list[Path]) -> list[str]:
        if len(files) != 2:
            raise ValueError(f"interpolate must be given two images: got {len(files)}")
        return ["-".join(super().stems(files))]

    def parts(self) -> Iterator[tuple[int, Tensor]]:
        return iter([(0, self.rows)])

    def labels(self, start: int, count: int) -> list[int]:
        if len(self.args.labels) != 1:
            raise ValueError(f"--labels must be one class for interpolate: got {len(self.args.labels)}")
        return [*self.args.labels]

    def draw(self, model: Callable[..., Any], rows: Tensor, start: int, **same: Any) -> Tensor:
        from gms_fast import editing

        return editing.interpolate(model, rows[0], rows[1], n=self.args.n, batch_size=self.args.batch_size, **same)


KINDS: dict[str, type[Edit]] = {
    "stroke": Stroke,
    "inpaint": Inpaint,
    "vary": Vary,
    "invert": Invert,
    "interpolate": Interpolate,
}
