"""The kinds of edits that `gms-fast edit` knows: the options of each, what it draws, and what is shown beside that."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gms_fast.cli import guides, options

if TYPE_CHECKING:
    from torch import Tensor


class Edit:
    """Results of one kind: args.n of each picture, result j of picture i the sample i n + j of its seed.

    rows           what is edited (N, C, H, W)
    before, after  columns of the strip beside the results
    batches        what is drawn so far
    """

    summary = ""
    n, steps, solver, strength = 1, 10, "gms", "0.5"  # defaults

    def __init__(self, args: argparse.Namespace, pictures: Tensor) -> None:
        self.args, self.rows = args, pictures
        self.before, self.after = [pictures], list[Any]()
        self.batches: list[Tensor] = []
        self.noise: list[Tensor] = []  # of the kind that keeps it

    @property
    def count(self) -> int:
        """Results in all."""
        return len(self.before[0]) * int(self.args.n)

    @classmethod
    def add(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options that not all kinds have."""
        parser.set_defaults(mask=None, noise=None)
        add = parser.add_argument
        add("--n", type=options.positive, default=cls.n, help=f"results of each picture (default: {cls.n})")
        add("--seed", type=options.seed, default=0, help="determines the results (default: 0)")

    @classmethod
    def stems(cls, files: list[Path]) -> list[str]:
        """Names of what is edited, by which files of results are named."""
        return [file.stem for file in files]

    def parts(self) -> Iterator[tuple[int, Tensor]]:
        """A row for each result, in batches, each with the index of its first result."""
        rows, size = self.rows.repeat_interleave(self.args.n, 0), self.args.batch_size
        return ((start, rows[start : start + size]) for start in range(0, len(rows), size))

    def labels(self, start: int, count: int) -> list[int]:
        """Classes of results: those of their pictures."""
        given = self.args.labels
        return [given[k // self.args.n % len(given)] for k in range(start, start + count)]

    def draw(self, model: Callable[..., Any], rows: Tensor, start: int, **same: Any) -> Tensor:
        """Results of a batch; same: arguments that all kinds have."""
        from gms_fast import editing

        return editing.stroke(model, rows, seed=self.args.seed, sample_offset=start, **same)

    def said(self) -> str:
        """A line on the results, if there is something to say of them."""
        return ""


class Stroke(Edit):
    """Stroke synthesis."""

    summary = "Make a picture of a drawing, or of any guide: noise it, and draw from there."

    def __init__(self, args: argparse.Namespace, pictures: Tensor) -> None:
        super().__init__(args, pictures)
        painting = {"colours": args.colours, "brush": args.brush}
        chosen = {name: value for name, value in painting.items() if value is not None}
        if chosen and not args.paint:
            raise ValueError(f"--{' and --'.join(chosen)} must come with --paint")
        if args.paint:
            from gms_fast import editing

            self.rows = editing.paint(pictures, **chosen)
            self.before = [pictures, self.rows]

    @classmethod
    def add(cls, parser: argparse.ArgumentParser) -> None:
        super().add(parser)
        add = parser.add_argument
        add("--repeats", type=options.positive, default=1, help="times, each from the last result (default: 1)")
        add("--paint", action="store_true", help="make a drawing of few colours of each picture first")
        add("--colours", type=options.positive, help="of such a drawing (default: 6)")
        add("--brush", type=options.finite, help="its width, a share of the shorter side (default: 0.1)")

    def draw(self, model: Callable[..., Any], rows: Tensor, start: int, **same: Any) -> Tensor:
        return super().draw(model, rows, start, repeats=self.args.repeats, **same)


class Vary(Edit):
    """Variations."""

    summary = "Draw variations of a picture: noise it several times, and draw from there."
    n, strength = 8, "0.4"


class Inpaint(Edit):
    """Inpainting."""

    summary = "Make a part of a picture anew, and keep the rest as it is."
    strength = "1"

    def __init__(self, args: argparse.Namespace, pictures: Tensor) -> None:
        super().__init__(args, pictures)
        self.mask = guides.mask(args.mask, (pictures.shape[2], pictures.shape[3]), resize=args.resize)
        self.before = [pictures, pictures * (1 - self.mask)]

    @classmethod
    def add(cls, parser: argparse.ArgumentParser) -> None:
        super().add(parser)
        add = parser.add_argument
        wanted = "white: made anew, black: kept, grey: how far a pixel may change; near black and white, where JPEG or "
        wanted += "--resize blur, counts as such"
        add("--mask", type=Path, required=True, metavar="PICTURE", help=wanted)
        add("--resample", type=options.positive, default=1, help="times that each step is taken (default: 1)")

    def draw(self, model: Callable[..., Any], rows: Tensor, start: int, **same: Any) -> Tensor:
        from gms_fast import editing

        args = self.args
        return editing.inpaint(
            model, rows, self.mask, resample=args.resample, seed=args.seed, sample_offset=start, **same
        )


class Invert(Edit):
    """Inversion, and the way back."""

    summary = "Find the noise that a picture is drawn from, draw from it, and say how near that comes."
    steps, solver, strength = 50, "dpm-solver++", "1"

    @classmethod
    def add(cls, parser: argparse.ArgumentParser) -> None:
        parser.set_defaults(n=1, mask=None)
        parser.add_argument("--noise", type=Path, metavar="FILE.npz", help="file to keep the noise in, as x_T")

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

    summary = "Draw pictures on the way from one picture to another."
    n, steps, solver, strength = 7, 50, "dpm-solver++", "1"

    def __init__(self, args: argparse.Namespace, pictures: Tensor) -> None:
        super().__init__(args, pictures)
        self.before, self.after = [pictures[:1]], [pictures[1:]]

    @classmethod
    def add(cls, parser: argparse.ArgumentParser) -> None:
        parser.set_defaults(mask=None, noise=None)
        parser.add_argument(
            "--n", type=options.several, default=cls.n, help=f"pictures on the way, with both ends (default: {cls.n})"
        )

    @classmethod
    def stems(cls, files: list[Path]) -> list[str]:
        if len(files) != 2:
            raise ValueError(f"interpolate must be given two pictures: got {len(files)}")
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
