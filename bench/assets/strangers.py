"""Train networks of diffusers on 8x8 digits by diffusers' own recipe, for moment heads.

    python -m bench.assets.strangers OUT

OUT/unet is a DDPMPipeline with a UNet2DModel. OUT/dit/transformer is a class-conditional DiTTransformer2DModel, and
OUT/dit/scheduler its scheduler (a DiTPipeline would need an autoencoder too). Existing folders are kept.

The recipe is that of diffusers' script for unconditional training: uniform times, squared error of the noise, AdamW
with a cosine schedule, clipped gradients, averaged weights. The learning rate is 1e-3 instead of 1e-4, because the
networks are small and the steps are few.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gms_fast import data
from gms_fast.storage import atomic

CLASSES, DROPPED = 10, 0.1  # one label in ten is dropped, as for DiT
BATCH, RATE, WARMUP, TIMES = 64, 1e-3, 500, 1000


def unet() -> nn.Module:
    from diffusers import UNet2DModel  # takes seconds

    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def dit() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=1,
        out_channels=1,
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=24,
        num_embeds_ada_norm=CLASSES,
    )


def no_condition(labels: Tensor) -> dict[str, Tensor]:
    return {}


def some_classes(labels: Tensor) -> dict[str, Tensor]:
    dropped = torch.rand(len(labels)) < DROPPED
    return {"class_labels": torch.where(dropped, CLASSES, labels)}


def train(network: nn.Module, scheduler: Any, condition: Callable[[Tensor], dict[str, Tensor]], steps: int) -> None:
    """Train a network; it ends with the average of its weights."""
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    images, labels = data.load("digits"), data.load_labels("digits")
    optimiser = torch.optim.AdamW(network.parameters(), RATE, (0.95, 0.999), eps=1e-8, weight_decay=1e-6)
    rate = get_cosine_schedule_with_warmup(optimiser, min(WARMUP, steps), steps)
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
    network.eval()  # turns off DiT's label dropout, which would differ between its blocks
    for _ in tqdm(range(steps), desc=type(network).__name__, unit="step"):
        batch = torch.randint(len(images), (BATCH,))
        eps, t = torch.randn(BATCH, *images.shape[1:]), torch.randint(TIMES, (BATCH,))
        noisy = scheduler.add_noise(images[batch], eps, t)
        found = network(noisy, t, return_dict=False, **condition(labels[batch]))[0]
        nn.functional.mse_loss(found, eps).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        rate.step()
        optimiser.zero_grad()
        average.step(network.parameters())
    average.copy_to(network.parameters())


def make(kind: str, out: Path, steps: int, seed: int) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    torch.manual_seed(seed)
    scheduler = DDPMScheduler(num_train_timesteps=TIMES)
    if kind == "unet":
        network = unet()
        train(network, scheduler, no_condition, steps)
        with atomic.writing_folder(out) as folder:
            DDPMPipeline(network, scheduler).save_pretrained(folder)
    else:
        network = dit()
        train(network, scheduler, some_classes, steps)
        with atomic.writing_folder(out) as folder:
            network.save_pretrained(folder / "transformer")
            scheduler.save_pretrained(folder / "scheduler")


def load(folder: Path) -> tuple[nn.Module, Any]:
    """Load the network and the scheduler of a folder for `gms_fast.models.wrap`."""
    from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DModel

    kind, part = (UNet2DModel, "unet") if (folder / "unet").is_dir() else (DiTTransformer2DModel, "transformer")
    network = kind.from_pretrained(folder, subfolder=part, low_cpu_mem_usage=False)  # True needs another package
    return network, DDPMScheduler.from_pretrained(folder, subfolder="scheduler")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the networks")
    parser.add_argument(
        "--kinds", nargs="+", default=["unet", "dit"], choices=["unet", "dit"], help="networks to train"
    )
    parser.add_argument("--steps", type=int, default=6_000, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and training")
    args = parser.parse_args()
    for kind in args.kinds:
        if (args.out / kind).is_dir():
            print(f"{args.out / kind} is there")
        else:
            make(kind, args.out / kind, args.steps, args.seed)


if __name__ == "__main__":
    main()
