"""`gms-fast train-heads`: heads for higher noise moments, on an existing network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gms_fast.cli import learning, options, sources

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gms_fast.models import MomentHeads

SUMMARY = "Train moment heads on a frozen network, from diffusers or a released checkpoint."
STAGE = "heads"
PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gms-fast train-heads`."""
    add = parser.add_argument
    network = "folder of a diffusers network or pipeline, or checkpoint file released for GMS or improved-diffusion"
    add("--network", type=sources.Model, required=True, help=network)
    add("--data", type=sources.Data, required=True, help=learning.DATA)
    labels = "class labels of the images, required for a network with classes: mnist5k, digits, or a .npy or .npz file"
    add("--labels", type=sources.Data, help=labels)
    add("--out", type=Path, required=True, help='folder of the run; the heads are saved in its subfolder "model"')
    add("--steps", type=options.positive, default=4000, metavar="N", help="number of optimiser steps (default: 4000)")
    features = "name of the module whose input the heads read (default: set automatically for known networks)"
    add("--features", metavar="MODULE", help=features)
    add("--schedule", help="noise schedule of a network that has no scheduler, such as linear, cosine, vp, edm or flow")
    prediction = "prediction type of a network that has no scheduler: noise, x0, v, flow or edm"
    add("--prediction", help=prediction)
    add("--head", choices=("complex", "simple"), default="complex", help=learning.HEAD)
    std = "approximate standard deviation of the data, above 0 (default: 1)"
    add("--data-std", type=float, default=1.0, metavar="STD", help=std)
    learning.add_recipe(parser)
    precision = "dtype in which the frozen network computes: no (float32), bf16 or fp16 (default: no)"
    add("--mixed-precision", choices=tuple(PRECISIONS), default="no", help=precision)
    options.add_again(parser, "run")


def run(args: argparse.Namespace) -> int:
    """Train the heads and save them. All checks come before the first step.

    Under torchrun the ranks share the rows of each batch.
    """
    from gms_fast import data
    from gms_fast.models.saved_heads import FILE
    from gms_fast.training import train_moment_heads
    from gms_fast.training.ranks import gathered

    given = learning.settings(args, PRECISIONS[args.mixed_precision])
    device = options.device(args.device)
    images = data.load(args.data)
    labels = learning.labels(args, len(images))
    model = _model(args, device, labels)
    ranks, heads, saved = gathered(device), args.out / STAGE, args.out / learning.MODEL
    with learning.folder(args, ranks, (STAGE,), (FILE,)):
        seen = images if labels is None else (images, labels)
        train_moment_heads(model, seen, steps=args.steps, out=heads, **given)
        ranks.by_first(lambda: model.save_pretrained(saved))
    if ranks.first:
        classes = "" if labels is None else " --labels 0,1"
        print(f"saved {saved}; draw from it with: gms-fast sample --model {saved}{classes}")
    return 0


def _model(args: argparse.Namespace, device: torch.device, labels: Tensor | None) -> MomentHeads:
    import torch

    from gms_fast import io
    from gms_fast.models import MomentHeads, MomentUNet

    network = io.network(args.network, schedule=args.schedule, prediction=args.prediction).to(device)
    if isinstance(network, MomentHeads):
        raise ValueError(f"--network must be a network without heads: {args.network} already has some")
    asked = options.asked(network, labels)
    torch.manual_seed(args.seed)
    return MomentHeads(
        network,
        args.features or ("out" if isinstance(network, MomentUNet) else None),
        head=args.head,
        data_std=args.data_std,
        condition=None if asked is None or labels is None else {asked: labels[:1].to(device)},
    )
