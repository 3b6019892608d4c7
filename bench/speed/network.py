"""Time of one call of the embedded network on the CPU, in several variants.

    python -m bench.speed.network [--compiled] [--batches]

It prints times in units of a float32 call with all three moments. The variants are: without the heads, under bfloat16
autocast, with channels_last weights and input, and compiled. If diffusers is installed, its UNet2DModel with about as
many parameters is timed too. With --batches it prints pictures per second by batch size instead, in units of those at
64.
"""

import argparse
import copy
import importlib.util

import torch
from torch import Tensor, nn

import gms_fast
from bench.speed.cases import SHAPES, Case, Inputs, Sets
from bench.speed.machine import Machine
from bench.speed.timing import in_turn, spread

ALL, FIRST = "three moments", "first moment alone"
BATCHES = (16, 32, 64, 128, 256, 512)
UNIT = 64  # batch size that the others are compared with


def inputs(n: int) -> Sets:
    """Draw states and network times of n pictures."""

    def draw(seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(n, *SHAPES["mnist"][1:], generator=generator), torch.full((n,), 500.0)

    return Sets(draw)


def rival() -> nn.Module:
    """Make a diffusers network with the embedded network's levels and about as many parameters."""
    from diffusers import UNet2DModel

    down, up = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64, 96),
        down_block_types=down,
        up_block_types=up,
    ).eval()


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def calls(n: int, *, compiled: bool) -> list[Case]:
    """Return the embedded network's calls, and that of diffusers' network."""
    network, sets = gms_fast.load("mnist"), inputs(n)
    last = torch.channels_last
    beside = copy.deepcopy(network).to(memory_format=last)

    def narrow(x: Tensor, t: Tensor) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return network(x, t)

    named = {
        ALL: network,
        FIRST: network.first_moment,
        "bfloat16 autocast": narrow,
        "channels_last": lambda x, t: beside(x.contiguous(memory_format=last), t),
    }
    if compiled:
        named["torch.compile"] = torch.compile(network, fullgraph=True)
    if importlib.util.find_spec("diffusers"):
        other = rival()
        share = size(other) / size(network)
        named[f"diffusers UNet2DModel, {share:.2f} of the parameters, noise alone"] = lambda x, t: other(x, t).sample
    return [Case(name, run, sets, 8) for name, run in named.items()]


@torch.no_grad()
def measured(cases: list[Case], runs: int) -> dict[str, list[float]]:
    """Return the seconds of each case in each turn."""
    times = in_turn(Machine(), cases, runs)
    for name, why in times.failed.items():
        print(f"left out: {name}: {why.splitlines()[0]}")
    return times.seconds


def show_calls(seconds: dict[str, list[float]]) -> None:
    unit = spread(seconds[ALL])[1]
    for name, values in seconds.items():
        low, median, high = (value / unit for value in spread(values))
        print(f"{name:70} {median:6.2f}  {low:6.2f} {high:6.2f}")
    print(f"share of the heads: {1 - spread(seconds[FIRST])[1] / unit:.1%}")


def show_batches(seconds: dict[str, list[float]]) -> None:
    unit = UNIT / spread(seconds[str(UNIT)])[1]
    print("batch  pictures per second, quartiles")
    for name, values in seconds.items():
        high, median, low = (int(name) / value / unit for value in spread(values))
        print(f"{name:>5} {median:6.2f}  {low:6.2f} {high:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="turns of each case (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="threads of torch (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=UNIT, help=f"pictures of a call (default: {UNIT})")
    parser.add_argument("--compiled", action="store_true", help="time torch.compile too")
    parser.add_argument("--batches", action="store_true", help="pictures per second by batch size")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.batches:
        network = gms_fast.load("mnist")
        show_batches(measured([Case(str(n), network, inputs(n), 8) for n in BATCHES], args.runs))
    else:
        show_calls(measured(calls(args.batch, compiled=args.compiled), args.runs))


if __name__ == "__main__":
    main()
