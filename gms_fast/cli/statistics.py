"""`gms-fast statistics`: statistics for DPM-Solver-v3, a Gaussian of the data, or features."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gms_fast.cli import measured, options, sources

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

    from gms_fast.measure.work import Work
    from gms_fast.models.unet import MomentUNet

SUMMARY = (
    "Measure the model statistics that the solver dpm-solver-v3 needs. With --gaussian, measure the mean and "
    "covariance of the model's data for teleport and gms. With --features, measure a reference for gms-fast evaluate."
)
STEPS = 20  # solver steps of samples that replace data: docs/quality.md
SAMPLES = {"gaussian": 4000, "empirical": 1024}
ONLY = {  # options for only one kind of statistics
    "gaussian": ("rank", "flips"),
    "empirical": ("nodes", "window"),
    "features": ("feature_input", "feature_channels"),
}
OF_MODELS = ("gaussian", "model", "samples", "seed", "half", "resume")  # options that --features excludes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gms-fast statistics`."""
    add = parser.add_argument
    add("--gaussian", action="store_true", help="measure the mean and covariance of the data, for teleport and gms")
    add("--model", type=sources.Model, help=options.MODEL)
    data = "training data of the model: mnist5k, digits, an array file or a folder of images (required, except with "
    data += "--gaussian, which can use samples of the model instead)"
    add("--data", type=sources.Data, help=data)
    add("--out", type=Path, required=True, help="output file, which must end in .safetensors")
    samples = (
        "number of images to average over at every noise level (default: 1024); with --gaussian but without --data, "
    )
    samples += "number of samples to draw (default: 4000)"
    add("--samples", type=options.positive, metavar="N", help=samples)
    batch = "number of images processed at a time; does not change the result (default: 64, or 256 with --features)"
    add("--batch-size", type=options.positive, metavar="B", help=batch)
    add("--seed", type=options.seed, help=options.SEED)
    add("--half", action="store_true", help="store large tensors in half precision")
    add("--device", help=options.DEVICE)
    nodes = "number of intervals in the grid of noise levels, at least 2 (default: 120)"
    add("--nodes", type=options.positive, metavar="N", help=nodes)
    window = "width of the moving average of dl/dlambda, in lambda = log(alpha/sigma), at least 0 (default: 0.1)"
    add("--window", type=float, help=window)
    add("--rank", type=options.positive, help="with --gaussian: number of eigenvectors to keep (default: all)")
    add("--flips", action="store_true", help="with --gaussian: also include the mirror image of each image")
    measured.add_features(parser)
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue from the file that an interrupted run left")
    again.add_argument("--force", action="store_true", help="start again and replace --out")


def run(args: argparse.Namespace) -> int:
    """Measure, write, and report the file."""
    kind = "features" if args.features else "gaussian" if args.gaussian else "empirical"
    for other, names in ONLY.items():
        if other != kind:
            options.refuse(args, names, f"without --{other}" if kind == "empirical" else f"with --{kind}")
    if args.features:
        options.refuse(args, OF_MODELS, "with --features")
        return measured.write_reference(args)
    if args.out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors: got {args.out}")
    if args.gaussian and args.data and args.samples:
        raise ValueError("--samples must not be given with --gaussian and --data: all of the data is used")
    args.samples, args.batch_size, args.seed = args.samples or SAMPLES[kind], args.batch_size or 64, args.seed or 0
    return _gaussian(args) if args.gaussian else _empirical(args)


def _empirical(args: argparse.Namespace) -> int:
    """Measure the empirical model statistics for DPM-Solver-v3."""
    from gms_fast import data, io
    from gms_fast.measure import empirical as measure
    from gms_fast.statistics import empirical_model

    if args.data is None:
        raise ValueError("--data must name the training data of the model: got none")
    given = {
        "N": args.nodes or 120,
        "samples": args.samples,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "window": 0.1 if args.window is None else args.window,
    }
    measure.check_numbers(**given)
    device = options.device(args.device)
    images = data.load(args.data)
    model = io.load(args.model or options.MNIST).to(device)
    measure.check_data(model, images)
    args.left = options.LEFT
    measured = empirical_model(
        model,
        images,
        out=args.out,
        resume=args.resume,
        replace=args.force,
        dtype=_dtype(args),
        progress=sys.stderr.isatty(),
        **given,
    )
    levels, first, last = len(measured.l), *(float(measured.l[j].mean()) for j in (0, -1))
    print(f"{args.samples} images at {levels} noise levels, mean l from {first:.3f} to {last:.3f}: {args.out}")
    return 0


def _gaussian(args: argparse.Namespace) -> int:
    """Measure mean and covariance of the data, or of samples of the model."""
    import torch

    import gms_fast
    from gms_fast import data, statistics
    from gms_fast.measure.empirical import check_data
    from gms_fast.measure.work import Work
    from gms_fast.storage.locks import locked_file

    options.device(args.device)
    most = args.samples * (1 + args.flips) - 1
    if args.data is None and args.rank and args.rank > most:
        raise ValueError(f"--rank must be at most {most} with --samples {args.samples}: got {args.rank}")
    source = data.load(args.data) if args.data else gms_fast.load(args.model or options.MNIST)
    images = isinstance(source, torch.Tensor)
    if images and args.model:
        check_data(gms_fast.load(args.model), source)
    shape = tuple(source.shape[1:] if isinstance(source, torch.Tensor) else source.sample_shape)
    work = Work({"samples": (args.samples, shape)})
    with locked_file(args.out):
        if work.keep_for(args.out, *_origin(args, source), resume=args.resume, replace=args.force):
            measured = statistics.Gaussian.load(args.out)
        else:
            args.left = "" if images else options.LEFT
            with nullcontext() if images else work.kept():
                rows = source if isinstance(source, torch.Tensor) else _samples(args, source, work)
                measured = statistics.gaussian(rows, args.rank, flips=args.flips, progress=sys.stderr.isatty())
            measured.save(args.out, dtype=_dtype(args), measurement=work.measurement)
            work.delete()
    share = f"{measured.variance_kept:.2%}"
    print(f"{measured.count} images, {measured.rank} eigenvectors with {share} of the variance: {args.out}")
    return 0


def _dtype(args: argparse.Namespace) -> torch.dtype:
    import torch

    return torch.float16 if args.half else torch.float32


def _origin(args: argparse.Namespace, source: Tensor | MomentUNet) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the samples depend on, and what else their Gaussian depends on."""
    import torch

    from gms_fast import statistics
    from gms_fast.storage import fingerprints

    rest = {"rank": args.rank, "flips": args.flips, "dtype": str(_dtype(args))}
    if isinstance(source, torch.Tensor):
        return {"data": fingerprints.of_tensors([source])}, rest
    drawn = {"network": statistics.fingerprint(source), "steps": STEPS, "samples": args.samples, "seed": args.seed}
    return drawn, rest


def _samples(args: argparse.Namespace, model: MomentUNet, work: Work) -> Iterator[Tensor]:
    """Yield batches of the model's samples as its data; samples in `work` are not drawn again."""
    import torch

    import gms_fast
    from gms_fast import solvers

    model = model.to(options.device(args.device))
    rows = work.rows["samples"]
    for start in range(0, args.samples, args.batch_size):
        end, known = min(start + args.batch_size, args.samples), len(rows)
        if known < end:
            draw = {"n": end - known, "sample_offset": known, "seed": args.seed}
            for row in gms_fast.sample(model, STEPS, solver=solvers.DPMSolverPP(), **draw):
                work.add("samples", row)
        yield torch.stack(rows[start:end])
