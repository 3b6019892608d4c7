"""Train a noise network on 8x8 digits, and several kinds of moment heads on it.

    python -m bench.assets.heads OUT

Each kind gets a folder that `gms_fast.load` takes, OUT/<kind>/model; `bench.experiments.quality` compares them.
--schedule cosine trains another network, to find which noise schedule suits which solver.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from gms_fast import data, io, schedules
from gms_fast.models import MomentUNet
from gms_fast.training import train_moment_heads, train_noise_network

KINDS: dict[str, dict[str, Any]] = {  # the package ships the first
    "normalised": {"moments": "central", "normalised": True, "head": "complex"},
    "simple": {"moments": "central", "normalised": True, "head": "simple"},
    "central": {"moments": "central", "head": "complex"},
    "raw": {"moments": "raw", "head": "complex"},
}
NETWORK: dict[str, Any] = {"image_size": 8, "in_channels": 1, "model_channels": 32, "channel_mult": (1, 2)}
NETWORK |= {"num_res_blocks": 1, "attention_resolutions": (2,)}


def network(kind: str, schedule: str) -> MomentUNet:
    torch.manual_seed(0)
    return MomentUNet(**NETWORK, **KINDS[kind], schedule=schedules.build(schedule))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument(
        "--schedule", default="linear", choices=("cosine", "linear"), help="noise schedule (default: %(default)s)"
    )
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="kinds of heads (default: all)"
    )
    parser.add_argument("--steps", type=int, default=6_000, help="training steps of the network (default: %(default)s)")
    parser.add_argument(
        "--head-steps", type=int, default=4_000, help="training steps of the heads (default: %(default)s)"
    )
    args = parser.parse_args()
    images, settings = data.load("digits"), {"batch_size": 64, "lr": 1e-3}
    base = train_noise_network(
        network(args.kinds[0], args.schedule), images, steps=args.steps, out=args.out / "noise", **settings
    )
    shared = {n: w for n, w in base.state_dict().items() if not n.startswith(("out2", "out3"))}
    for kind in args.kinds:
        model = network(kind, args.schedule)
        model.load_state_dict(shared, strict=False)
        train_moment_heads(
            model, images, steps=args.head_steps, out=args.out / kind, target=KINDS[kind]["moments"], **settings
        )
        io.save(model, args.out / kind / "model", dtype=torch.float16)


if __name__ == "__main__":
    main()
