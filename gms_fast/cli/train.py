"""`gms-fast train`: a noise network, then heads for its higher moments, then a folder for `gms_fast.load`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gms_fast.cli import learning, options

if TYPE_CHECKING:
    from torch import Tensor

    from gms_fast.models.unet import MomentUNet

SUMMARY = "Train a noise network and its moment heads."
STAGES = ("noise", "heads")
DROPPED = 0.1  # of labels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gms-fast train`; the defaults are the recipe of the embedded MNIST model."""
    add = parser.add_argument
    add("--data", required=True, help="mnist5k, digits, a .npy or .npz file or a folder of images")
    add("--labels", help="classes of the images, for a network of them: mnist5k, digits, a .npy file or a .npz file's")
    add("--label-dropout", type=float, help="share of images shown without their class, for guidance (default: 0.1)")
    add("--out", type=Path, required=True, help="folder for the run; the model goes to its subfolder model")
    add("--steps", type=options.positive, default=12000, help="steps for the noise network (default: 12000)")
    add("--head-steps", type=options.positive, default=4000, help="steps for the heads (default: 4000)")
    add("--target", choices=("central", "raw"), default="central", help="moments to learn (default: central)")
    add("--head", choices=("complex", "simple"), default="complex", help="form of the heads (default: complex)")
    add("--model-channels", type=options.positive, default=32, help="width, a multiple of 32 (default: 32)")
    add("--channel-mult", type=options.integers, default=(1, 2, 3), help="width factor per level (default: 1,2,3)")
    add("--num-res-blocks", type=options.positive, default=1, help="residual blocks per level (default: 1)")
    add("--attention", type=options.integers, default=(4,), help="downsampling factors with attention (default: 4)")
    add("--schedule", choices=("linear", "cosine"), default="linear", help="noise schedule (default: linear)")
    learning.add_recipe(parser)
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="of the network (default: float32)")
    options.add_again(parser, "run")


def run(args: argparse.Namespace) -> int:
    """Train both stages and save the merged model. Everything that can be refused is refused before the first step.

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
