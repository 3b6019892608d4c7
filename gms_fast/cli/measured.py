"""Existing samples: `evaluate --samples`, and the reference of `statistics --features`.

The result is called FID only if the user says that the features are Inception's. It is called FID without the number of
samples only for 50,000 samples.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gms_fast.cli import options, sources

if TYPE_CHECKING:
    import argparse

    from gms_fast.quality.extractors import Extractor
    from gms_fast.quality.running import Running

BATCH = 256
INCEPTION, PUBLISHED = 2048, 50_000  # width of Inception's pool3, and the number of samples of a FID
_STORED = ".safetensors"


def add_features(add: argparse._ActionsContainer) -> None:
    """Add the options that name a feature network."""
    add.add_argument(
        "--features",
        type=sources.Features,
        help="feature network: pixels, mnist5k, digits, cifar10, a torch module as package.module:attribute, or a "
        "TorchScript or torch.export file. Modules and files run code: use only those that you trust",
    )
    add.add_argument(
        "--feature-input",
        help="input range of your own feature network: [-1,1], [0,1], or uint8 as for StyleGAN's and EDM's Inception "
        "(default: [-1,1])",
    )
    channels = "with 3, the channel of grey images is repeated three times, for your own feature network"
    add.add_argument("--feature-channels", type=int, choices=(3,), help=channels)


def extractor(args: argparse.Namespace) -> Extractor:
    """Return the feature network of the options, on its device."""
    from gms_fast.quality import extractors

    device = options.device(args.device)
    return extractors.load(args.features, input=args.feature_input, channels=args.feature_channels, device=device)


def write_reference(args: argparse.Namespace) -> int:
    """Measure the data of `gms-fast statistics --features`, write the file, and print its name."""
    from gms_fast.storage.locks import locked_file

    if args.data is None:
        raise ValueError("--data must be given with --features")
    options.check_file(args.out, (_STORED,), overwrite=args.force)
    with locked_file(args.out):
        found = _measured(args.data, extractor(args), args)
        found.save(args.out)
    print(f"{found.count} images, {found.width} features ({found.features}): {args.out}")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Measure --samples against --reference, print the distances, and write them to --out."""
    from gms_fast.quality.running import compared
    from gms_fast.storage import atomic

    if args.reference is None:
        raise ValueError("--reference must be given with --samples")
    if args.out:
        options.check_file(args.out, (".json",), overwrite=args.force)
    args.samples, args.reference = _place(args.samples), _place(args.reference)
    sources.refuse_same(args.samples, args.reference)
    samples, reference, name = _both(args)
    if args.inception and samples.width != INCEPTION:
        raise ValueError(f"--inception needs the {INCEPTION} features of Inception's pool3: got {samples.width}")
    called, found = _called(args.inception, name, samples.count), compared(samples, reference)
    _show(args, samples, reference, called, found)
    if args.out:
        sets = {
            key: {"source": source, "count": running.count, "kept": len(running.index)}
            for key, source, running in (("samples", args.samples, samples), ("reference", args.reference, reference))
        }
        features = {"name": name, "mark": samples.features, "width": samples.width}
        atomic.write_text(
            args.out, json.dumps({**sets, "features": features, "called": called, **found}, indent=1) + "\n"
        )
    return 0


def _place(source: str) -> str:
    """Return the source itself, or the statistics file of a generation folder without images."""
    from gms_fast.generation import settings

    whole = Path(source, settings.WHOLE)
    run = settings.stored(Path(source)) if whole.is_file() else None
    return source if run is None or run["form"] != "none" else str(whole)


def _both(args: argparse.Namespace) -> tuple[Running, Running, str]:
    """Return statistics of samples and reference, and the name of their features."""
    from gms_fast.quality.running import Running

    paths = (args.samples, args.reference)
    stored = {path: Running.load(path) for path in paths if Path(path).suffix == _STORED}
    if args.features is None and set(paths) - stored.keys():
        raise ValueError(f"--features must be given, unless --samples and --reference are both {_STORED} files")
    if args.features is None:
        return stored[paths[0]], stored[paths[1]], stored[paths[0]].features
    network = extractor(args)
    for running in stored.values():
        Running(running.width, network.mark).refuse_other(running)
    samples, reference = (stored[path] if path in stored else _measured(path, network, args) for path in paths)
    return samples, reference, network.name


def _measured(source: str, network: Extractor, args: argparse.Namespace) -> Running:
    from gms_fast.quality.running import measured

    return measured(source, network, args.batch_size or BATCH, progress=sys.stderr.isatty())


def _called(inception: bool, name: str, count: int) -> str:
    """Return the name of the distance."""
    if not inception:
        return f"Frechet distance (features: {name})"
    return "FID" if count == PUBLISHED else f"FID of {count:,} samples"


def _show(args: argparse.Namespace, samples: Running, reference: Running, called: str, found: dict[str, float]) -> None:
    for title, source, running in (("samples", args.samples, samples), ("reference", args.reference, reference)):
        kept = f", {len(running.index):,} of them for kernel distance, precision and recall"
        some = "" if len(running.index) == running.count else kept
        print(f"{title}: {running.count:,} of {source}{some}")
    print(f"{called}: {found['frechet']:.6g}")
    print(f"kernel distance: {found['kernel']:.6g}")
    print(f"precision: {found['precision']:.4f}")
    print(f"recall: {found['recall']:.4f}")
