"""Moment heads on a foreign score network of galaxies, and samples of few steps.

    python -m bench.experiments.galaxies OUT

The network is from galaxygrad (`pip install --no-deps galaxygrad==0.1.7`; numpy reads its weights, so jax is not
needed). It has no licence, so it is read from its installation and nothing of it is copied here. It comes without
pictures. So the heads learn from samples that the network draws in many steps, and samplers with few steps are compared
with those. Writes OUT/NETWORK/*.png, a row for each sampler, and prints energy distances of log flux.
"""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import gms_fast
from gms_fast.images import save_images
from gms_fast.quality import measures
from gms_fast.schedules import VP
from gms_fast.storage import tensors as stored
from gms_fast.training import train_moment_heads

NETWORKS = {"hsc32": "hsc_ScoreNet32", "hsc64": "hsc_ScoreNet64", "ztf32": "ZTF_ScoreNet32", "ztf64": "ZTF_ScoreNet64"}
T, LAST = 1000, 10.0  # number of levels; the network's own time at the noisiest, where alpha = exp(-t/2)
MANY, BATCH, SHOWN = 50, 64, 12
SOLVERS, STEPS = ("ddim", "dpm-solver++", "sn-ddpm", "gms"), (5, 10, 20)


class Galaxies(nn.Module):
    """MLP-Mixer on patches of x and its time, which predicts the noise.

    x is log(1 + flux)/0.1. t counts the levels from 0, and alpha is exp(-LAST/2 (t + 1)/T).

    Args:
        leaves: Weights in the order of the file: patches in, patches out; for each block the layers that mix patches,
            those
            that mix channels, and a norm before either; the last norm.

    References:
        Tolstikhin et al. 2021, arXiv 2105.01601.
    """

    prediction, clip = "noise", None

    def __init__(self, leaves: list[np.ndarray]) -> None:
        super().__init__()
        first, first_bias, last, last_bias, *inner = (torch.from_numpy(leaf) for leaf in leaves)
        channels, _, side, _ = first.shape
        patches = inner[-1].shape[1]
        self.schedule = VP(torch.full((T,), 1 - np.exp(-LAST / T), dtype=torch.float64))
        self.sample_shape = (1, round(patches**0.5) * side, round(patches**0.5) * side)
        self.patches = _filled(nn.Conv2d(2, channels, side, side), first, first_bias.flatten())
        blocks = [inner[i : i + 12] for i in range(0, len(inner) - 2, 12)]
        self.blocks = nn.ModuleList(_Block(channels, patches, block) for block in blocks)
        self.norm = _filled(nn.LayerNorm((channels, patches)), *inner[-2:])
        out = last.transpose(0, 1).flip(2, 3)  # torch flips transposed kernels, jax does not
        self.out = _filled(nn.ConvTranspose2d(channels, 1, side, side), out, last_bias.flatten())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        sigma = self.schedule.sigma(t).to(x).view(-1, 1, 1, 1)
        time = ((t + 1) / T).to(x).view(-1, 1, 1, 1).expand_as(x)
        y = self.patches(torch.cat([x, time], 1))
        shape, y = y.shape, y.flatten(2)
        for block in self.blocks:
            y = block(y)
        return -sigma * self.out(self.norm(y).view(shape))  # noise from the score


class _Block(nn.Module):
    def __init__(self, channels: int, patches: int, leaves: list[Tensor]) -> None:
        super().__init__()
        self.mix_patches, self.mix_channels = _two_layers(*leaves[:4]), _two_layers(*leaves[4:8])
        self.norm1 = _filled(nn.LayerNorm((channels, patches)), *leaves[8:10])
        self.norm2 = _filled(nn.LayerNorm((patches, channels)), *leaves[10:])

    def forward(self, y: Tensor) -> Tensor:
        y = (y + self.mix_patches(self.norm1(y))).mT
        return (y + self.mix_channels(self.norm2(y))).mT


def _two_layers(a: Tensor, a_bias: Tensor, b: Tensor, b_bias: Tensor) -> nn.Module:
    into, out = nn.Linear(a.shape[1], a.shape[0]), nn.Linear(b.shape[1], b.shape[0])
    return nn.Sequential(_filled(into, a, a_bias), nn.ReLU(), _filled(out, b, b_bias))


def _filled(layer: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def network(name: str) -> Galaxies:
    """Load a network of the installed galaxygrad without running its code, which would need jax."""
    found = importlib.util.find_spec("galaxygrad")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("galaxygrad is missing: pip install --no-deps galaxygrad==0.1.7")
    file = Path(found.submodule_search_locations[0], f"eqx_{NETWORKS[name]}.eqx")
    leaves, size = [], file.stat().st_size
    with file.open("rb") as stream:  # a sequence of numpy arrays
        while stream.tell() < size:
            leaves.append(np.load(stream, allow_pickle=False))
    return Galaxies(leaves[:-1]).eval()  # without the noisiest time


def drawn(model: nn.Module, n: int, solver: str, steps: int, seed: int, progress: bool = False) -> Tensor:
    """Draw n samples, on the same grid for all solvers."""
    times = model.schedule.timesteps(steps, "log-snr")
    return gms_fast.sample(
        model, timesteps=times, solver=solver, n=n, seed=seed, batch_size=BATCH, denoise=True, progress=progress
    )


def data(net: Galaxies, n: int, file: Path) -> Tensor:
    """Draw samples in many steps, or load them from a file."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        stored.write(file, {"x": drawn(net, n, "dpm-solver++", MANY, 0, progress=True)}, {})
    return stored.load(file)[0]["x"]


def show(x: Tensor, file: Path) -> None:
    """Write pictures of x, each scaled to its brightest pixel."""
    save_images(2 * (x / x.amax((1, 2, 3), keepdim=True)).clamp(0, 1) - 1, file, columns=SHOWN, scale=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument(
        "--network", default="hsc32", choices=list(NETWORKS), help="network of galaxygrad (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=2_000, help="training steps of the heads (default: 2000)")
    parser.add_argument("-n", type=int, default=1_024, help="samples to learn from (default: 1024)")
    args = parser.parse_args()
    net, folder = network(args.network), args.out / args.network
    real = data(net, args.n, folder / f"samples-{args.n}.safetensors")
    model = gms_fast.models.MomentHeads(net, "out", data_std=float(real.std()))
    train_moment_heads(model, real, steps=args.steps, out=folder / "heads", batch_size=32, lr=1e-3)
    for steps in STEPS:
        rows = [real[:SHOWN]]
        for solver in SOLVERS:
            x = drawn(model, 256, solver, steps, 1)
            rows.append(x[:SHOWN])
            distance, spread = measures.energy_distance(x.flatten(1), real.flatten(1)), float(x.std() / real.std())
            print(f"{steps:3} steps of {solver:12} {distance:7.3f}, {spread:.3f} of the deviation", flush=True)
        show(torch.cat(rows), folder / f"{steps}.png")


if __name__ == "__main__":
    main()
