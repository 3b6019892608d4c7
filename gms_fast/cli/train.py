"""`gms-fast train`: a noise network, heads for its higher moments, and a folder to load."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gms_fast.cli import learning, options, sources

if TYPE_CHECKING:
    from torch import Tensor

    from gms_fast.models.unet import MomentUNet

SUMMARY = "Train a noise network and its moment heads."
STAGES = ("noise", "heads")
DROPPED = 0.1  # default share of labels to drop


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gms-fast train`, by default the recipe of the embedded MNIST model."""
    add = parser.add_argument
    add("--data", type=sources.Data, required=True, help=learning.DATA)
    labels = "class labels of the images, to train a network with classes: mnist5k, digits, or a .npy or .npz file"
    add("--labels", type=sources.Data, help=labels)
    dropout = "share of images whose label is dropped, at least 0 and below 1, which allows guidance (default: 0.1)"
    add("--label-dropout", type=float, metavar="SHARE", help=dropout)
    add("--out", type=Path, required=True, help='folder of the run; the model is saved in its subfolder "model"')
    steps = "number of optimiser steps for the noise network (default: 12000)"
    add("--steps", type=options.positive, default=12000, metavar="N", help=steps)
    heads = "number of optimiser steps for the moment heads (default: 4000)"
    add("--head-steps", type=options.positive, default=4000, metavar="N", help=heads)
    target = "moments to learn: central (about the mean) or raw (about 0) (default: central)"
    add("--target", choices=("central", "raw"), default="central", help=target)
    add("--head", choices=("complex", "simple"), default="complex", help=learning.HEAD)
    width = "number of channels at the first level, a multiple of 32 (default: 32)"
    add("--model-channels", type=options.positive, default=32, metavar="C", help=width)
    factors = "multiplier of the channels at each level, separated by commas (default: 1,2,3)"
    add("--channel-mult", type=options.integers, default=(1, 2, 3), metavar="F,..", help=factors)
    blocks = "number of residual blocks per level (default: 1)"
    add("--num-res-blocks", type=options.positive, default=1, metavar="N", help=blocks)
    attention = "downsampling factors of the levels with attention, separated by commas (default: 4)"
    add("--attention", type=options.integers, default=(4,), metavar="F,..", help=attention)
    add("--schedule", choices=("linear", "cosine"), default="linear", help="noise schedule (default: linear)")
    learning.add_recipe(parser)
    precision = "dtype in which the network computes; weights and losses stay float32 (default: float32)"
    add("--precision", choices=("float32", "bfloat16"), default="float32", help=precision)
    options.add_again(parser, "run")


def run(args: argparse.Namespace) -> int:
    """Train both stages and save the merged model. All checks come before the first step.

    Under torchrun the ranks share the rows of each batch.
    """
    import torch

    from gms_fast import data, io
    from gms_fast.training import Settings, train_moment_heads, train_noise_network
    from gms_fast.training.ranks import gathered

    given = learning.settings(args, args.precision)
    device = options.device(args.device)
    images = data.load(args.data)
    labels = learning.labels(args, len(images))
    if labels is None:
        options.refuse(args, ("label_dropout",), "without --labels")
    else:
        given["label_dropout"] = DROPPED if args.label_dropout is None else args.label_dropout
        Settings(steps=args.steps, label_dropout=given["label_dropout"])
    torch.manual_seed(args.seed)
    model = _build(args, images, labels).to(device)
    seen = images if labels is None else (images, labels)
    ranks, (noise, heads), saved = gathered(device), (args.out / stage for stage in STAGES), args.out / learning.MODEL
    with learning.folder(args, ranks, STAGES, (io.WEIGHTS, io.CONFIG), check=io.check_target):
        train_noise_network(model, seen, steps=args.steps, out=noise, **given)
        train_moment_heads(model, seen, steps=args.head_steps, out=heads, target=args.target, **given)
        ranks.by_first(lambda: io.save(model, saved))
    if ranks.first:
        classes = "" if labels is None else " --labels 0,1"
        print(f"saved {saved}; draw from it with: gms-fast sample --model {saved}{classes}")
    return 0


def _build(args: argparse.Namespace, images: Tensor, labels: Tensor | None) -> MomentUNet:
    from gms_fast import schedules
    from gms_fast.models.unet import MomentUNet

    channels, height, width = images.shape[1:]
    if height != width:
        raise ValueError(f"--data must hold square images: got {height} x {width}")
    if not args.channel_mult:
        raise ValueError("--channel-mult must have at least one number: got none")
    model = MomentUNet(
        image_size=height,
        in_channels=channels,
        model_channels=args.model_channels,
        channel_mult=args.channel_mult,
        num_res_blocks=args.num_res_blocks,
        attention_resolutions=args.attention,
        head=args.head,
        moments=args.target,
        normalised=args.target == "central",
        schedule=schedules.build(args.schedule),
        num_classes=None if labels is None else int(labels.max()) + 1,
    )
    if height % model.factor:
        levels = len(args.channel_mult)
        raise ValueError(f"--data must have a side divisible by {model.factor} for {levels} levels: got {height}")
    return model
