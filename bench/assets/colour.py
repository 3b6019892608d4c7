"""Train a model of small colour images, with all that solvers use, in minutes of a GPU.

    python -m bench.assets.colour --data FILE --out OUT [--minutes 8]

FILE is an .npz of `images` and `labels`; the quality matrix uses the training images of CIFAR-10 (JPEG 75).
OUT/model can then be loaded by `gms_fast.load`: a class-conditional network with moment heads. The stages are:

plan      time a few steps on the device, and plan as many as fit into --minutes; the rate reaches 0 after the last one
noise     train the noise network, with a checkpoint every minute
heads     train moment heads on it, for an eighth of that time
model     write the folder, and an image of samples
gaussian  mean and covariance of the data
curves    statistics for DPM-Solver-v3
tables    learned samplers of 5 and 10 network calls
card      OUT/model/README.md: data, commands, device, seconds

The run may end at any time, by a signal, `timeout 9m`, or the loss of the machine; the same command resumes it.
So --minutes 16 in two sittings of eight is one run. --plan shows the size of the network and an estimate for a GPU.
--toy does everything in seconds on a CPU.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.flop_counter import FlopCounterMode

import gms_fast
from bench.records.record import environment, save
from gms_fast import data, guidance, images, io, schedules, search, statistics
from gms_fast.models import MomentUNet
from gms_fast.storage import atomic
from gms_fast.tables import empirical, gaussian
from gms_fast.training import train_moment_heads, train_noise_network

NAME = "CIFAR-10 (JPEG 75)"
PEAK = 989e12  # dense bfloat16 operations per second of an H100 or H200
SHARES = (0.10, 0.15, 0.25, 0.35, 0.40)  # shares of the peak that a network may reach
HEADS = 1 / 8  # time of the heads, as a share of the noise network's
WEIGHTS = "min-snr"  # of the loss, chosen in bench/results/loss_weights.json


class Size(NamedTuple):
    """Sizes of the network and of each stage."""

    network: dict[str, Any]
    batch: int
    warmup: int
    timed: tuple[int, int, int]  # steps of a run that compiles, and of two runs whose difference is timed
    curves: dict[str, int]
    tables: dict[int, dict[str, Any]]
    drawn: int  # images of each class


FULL = Size(
    network={"model_channels": 96, "channel_mult": (1, 2, 2), "num_res_blocks": 2, "attention_resolutions": (2,)},
    batch=512,
    warmup=400,
    timed=(4, 8, 40),
    curves={"N": 120, "samples": 512, "batch_size": 128},
    tables={
        5: {"iterations": 120, "batch_size": 200, "chunk": 200},
        10: {"iterations": 60, "batch_size": 200, "chunk": 100, "lr": 3e-3, "kernel": "linear"},
    },
    drawn=8,
)
TOY = Size(
    network={"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": ()},
    batch=4,
    warmup=1,
    timed=(1, 1, 2),
    curves={"N": 12, "samples": 2, "batch_size": 2},
    tables={5: {"iterations": 1, "batch_size": 4, "chunk": 4, "score_samples": 4}},
    drawn=1,
)
SEARCH = {"variant": "time", "initial": "unip", "spacing": 0.7}


class Turns(nn.Module):
    """Class-conditional network used as an unconditional one: the rows take the classes in turn.

    `unguided` is the network itself.
    """

    def __init__(self, network: MomentUNet) -> None:
        super().__init__()
        self.unguided, self.schedule, self.sample_shape = network, network.schedule, network.sample_shape
        self.prediction, self.moments, self.clip = network.prediction, network.moments, network.clip

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = torch.arange(len(x), device=x.device) % self.unguided.no_class
        return self.unguided.first_moment(x, t, y=y)


class Seen(nn.Module):
    """Features (n, D) of images for the search.

    They are the noise network's own features at a low noise level, pooled, and the image in 8x8. A classifier is not
    used, because another classifier judges the result.
    """

    TIME = 50.0  # time step out of 1000

    def __init__(self, network: MomentUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        t = torch.full((len(x),), self.TIME, device=x.device)
        none = torch.tensor([self.network.no_class], device=x.device)
        h, _ = self.network.features(x, t, none)
        return torch.cat([adaptive_avg_pool2d(h, 4).flatten(1), adaptive_avg_pool2d(x, 8).flatten(1)], 1)


def network(size: Size, side: int, classes: int) -> MomentUNet:
    """Make a new network, the same at each call."""
    torch.manual_seed(0)
    return MomentUNet(
        image_size=side,
        num_classes=classes,
        moments="central",
        normalised=True,
        schedule=schedules.VPLinear(),
        **size.network,
    )


def operations(model: MomentUNet) -> float:
    """Return the floating-point operations of a training step per image, forward and backward."""
    there = model.to("meta")
    x, t, y = torch.zeros(2, *model.sample_shape), torch.zeros(2), torch.zeros(2, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        there.first_moment(x.to("meta"), t.to("meta"), y=y.to("meta")).sum().backward()
    return counter.get_total_flops() / 2


def planned(size: Size, minutes: float) -> str:
    """Describe the network's size, and the images that a GPU processes at shares of its peak."""
    model = network(size, 32, 10)
    count, cost = sum(p.numel() for p in model.parameters()), operations(model)
    shares = ", ".join(f"{share:.0%}: {share * PEAK * 60 * minutes / cost / 1e6:.1f}" for share in SHARES)
    return (
        f"{count / 1e6:.1f} million parameters, {cost / 1e9:.1f} GFLOP an image and step\n"
        f"million images in {minutes:g} minutes by share of {PEAK / 1e12:.0f} TFLOP/s: {shares}\n"
        "small convolutions of 32x32 images reach less than large products do: expect 15%"
    )


class Run:
    """One run: its folder, its data on the device, and the seconds of its stages."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out, self.device = args, args.out, torch.device(args.device)
        self.size, self.cuda = TOY if args.toy else FULL, self.device.type == "cuda"
        parts = [part for part, _ in data.stream(args.data, 10_000)]
        self.images = torch.cat(parts).to(self.device)  # uint8 stays uint8
        self.labels = data.load_labels(args.data).to(self.device)
        self.model = network(self.size, self.images.shape[-1], int(self.labels.max()) + 1).to(self.device)
        self.file = self.out / "run.json"
        self.known: dict[str, Any] = {"minutes": args.minutes, "toy": args.toy, "plan": {}, "seconds": {}, "ended": []}
        if self.file.exists():
            self.known = json.loads(self.file.read_text())
            if (self.known["minutes"], self.known["toy"]) != (args.minutes, args.toy):
                raise SystemExit(f"--out {self.out} holds one of --minutes {self.known['minutes']:g}: give the same")

    def stage(self, name: str, make: Callable[[], None], *, again: bool = False) -> None:
        """Run a stage that has not ended before, or any with `again`; add up its seconds."""
        ended, seconds, start = self.known["ended"], self.known["seconds"], time.perf_counter()
        if name in ended and not again:
            return
        try:
            make()
            self.known["ended"] = [*dict.fromkeys([*ended, name])]
        finally:
            seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 1)
            self.known["device"] = torch.cuda.get_device_name(self.device) if self.cuda else "CPU"
            self.out.mkdir(parents=True, exist_ok=True)
            save(self.file, self.known)
        print(f"{name}: {seconds[name]} s", flush=True)

    @property
    def settings(self) -> dict[str, Any]:
        """Return the arguments that both training stages share."""
        given = {"batch_size": self.size.batch, "warmup": self.size.warmup, "flips": True, "label_dropout": 0.1}
        given |= {"precision": "bfloat16" if self.cuda else "float32", "compile": self.cuda, "ema": 0.9995}
        return {**given, "checkpoint_seconds": 60.0, "progress": sys.stderr.isatty()}

    def noise(self, steps: int, out: Path) -> None:
        seen, weights = (self.images, self.labels), WEIGHTS
        options = {"lr": 5e-4, "weights": weights, "checkpoint_every": steps, **self.settings}
        train_noise_network(self.model, seen, steps=steps, out=out, **options)

    def heads(self, steps: int, out: Path) -> None:
        seen, options = (self.images, self.labels), {"lr": 1e-3, "checkpoint_every": steps, **self.settings}
        train_moment_heads(self.model, seen, steps=steps, out=out, **options)

    def plan(self) -> None:
        """Plan the steps of both training stages from their time on this device."""
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        for stage, seconds in (("noise", 60 * self.args.minutes), ("heads", 60 * self.args.minutes * HEADS)):
            each = self._seconds(getattr(self, stage))
            self.known["plan"][stage] = {"steps": max(1, int(seconds / each)), "seconds": round(each, 5)}
        self.model.load_state_dict(before)

    def _seconds(self, train: Callable[[int, Path], None]) -> float:
        """Measure the seconds of a step, by two runs that differ only in their steps.

        An earlier run compiles everything.
        """
        found = []
        for steps in self.size.timed:
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                train(steps, Path(folder))
                found.append(time.perf_counter() - start)
        return max(found[2] - found[1], 1e-3) / (self.size.timed[2] - self.size.timed[1])

    def folder(self, saved: Path) -> None:
        """Write the model, and an image of samples with a column for each class."""
        count = self.model.no_class or 1
        y = torch.arange(self.size.drawn * count, device=self.device) % count
        x = gms_fast.sample(self.model.eval(), 20, n=len(y), condition={"y": y}, batch_size=128)
        images.save_images(x.float().clamp(-1, 1).cpu(), self.out / "samples.png", columns=count)
        io.save(self.model, saved, dtype=torch.float16)

    def gaussian(self, file: Path) -> None:
        batches = (self._floating(part) for part in self.images.split(5000))
        statistics.gaussian(batches, flips=True).save(file, dtype=torch.float16)

    def curves(self, file: Path, model: MomentUNet) -> None:
        none = guidance.ClassifierFree(model, {"y": torch.tensor([model.no_class])})
        options = {**self.size.curves, "dtype": torch.float16, "progress": sys.stderr.isatty()}
        statistics.empirical_model(none, self._floating(self.images[:10_000]), out=file, **options)

    def table(self, calls: int, file: Path, model: MomentUNet) -> None:
        options = SEARCH | self.size.tables[calls] | {"progress": sys.stderr.isatty()}
        some = self._floating(self.images[:10_000])
        found = search.ggdm(Turns(model), some, calls, features=Seen(model), out=self.out / f"ggdm-{calls}", **options)
        found.save(file)

    def _floating(self, part: Tensor) -> Tensor:
        return part.float().cpu() / 127.5 - 1

    def card(self, file: Path) -> None:
        seconds = "".join(f"| {stage} | {found} |\n" for stage, found in self.known["seconds"].items())
        plan, commit = self.known["plan"], environment()["commit"]
        atomic.write_text(
            file,
            CARD.format(
                name=NAME,
                command=f"python -m bench.assets.colour --minutes {self.args.minutes:g}" + " --toy" * self.args.toy,
                network=", ".join(f"{name} {value}" for name, value in self.size.network.items()),
                noise=plan["noise"]["steps"],
                heads=plan["heads"]["steps"],
                pictures=plan["noise"]["steps"] * self.size.batch,
                batch=self.size.batch,
                weights=WEIGHTS,
                device=self.known["device"],
                commit=commit,
                seconds=seconds,
                torch=torch.__version__,
            ),
        )


CARD = """# Model card: {name}

A class-conditional noise network (y = 0 .. 9, 10 for no class) with heads for the second and third central noise
moment, for 32x32 colour images in [-1, 1].

| | |
|---|---|
| network | `MomentUNet`: {network} |
| schedule | `VPLinear()`: T = 1000, beta 1e-4 .. 0.02 |
| trained on | {name}: the 50,000 training images of CIFAR-10 after JPEG at quality 75, mirrored at random |
| noise network | {noise} steps of {batch} images ({pictures} in all), loss weights "{weights}" |
| labels | one in ten dropped |
| heads | {heads} steps on the frozen network |
| beside it | `gaussian.safetensors`, `empirical.safetensors` (of no class), `ggdm-K.safetensors` for K calls |
| device | {device}, torch {torch}, commit {commit} |
| licence | MIT, like the package; of the data: below |

```
{command} --data train.npz --out FOLDER
```

| stage | seconds |
|---|---|
{seconds}
## Licence
The weights and statistics come under the package's LICENSE (MIT). The images they were made from are not here:
CIFAR-10 was collected by A. Krizhevsky, V. Nair and G. Hinton (*Learning Multiple Layers of Features from Tiny Images*,
2009), without terms of a licence. They had been stored as JPEG of quality 75, so figures are not those of CIFAR-10.
"""


def made(run: Run) -> None:
    """Run all stages that have not ended."""
    saved = run.out / "model"
    run.stage("plan", run.plan)
    if "model" not in run.known["ended"]:
        for name, train in (("noise", run.noise), ("heads", run.heads)):
            steps = run.known["plan"][name]["steps"]
            run.stage(name, partial(train, steps, run.out / name), again=True)  # a finished stage loads its weights
        run.stage("model", partial(run.folder, saved))
    model = io.load(saved).to(run.device)
    run.stage("gaussian", partial(run.gaussian, saved / gaussian.FILE))
    run.stage("curves", partial(run.curves, saved / empirical.FILE, model))
    for calls in run.size.tables:
        run.stage(f"table of {calls} calls", partial(run.table, calls, saved / f"ggdm-{calls}.safetensors", model))
    run.card(saved / "README.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help=".npz file with images and labels")
    parser.add_argument("--out", type=Path, help="folder of the run")
    parser.add_argument("--minutes", type=float, default=8, help="time for the noise network, all sittings together")
    parser.add_argument("--device", default="cuda", help="device of the training (default: %(default)s)")
    parser.add_argument("--toy", action="store_true", help="a useless network in seconds, as a test")
    parser.add_argument("--plan", action="store_true", help="show the size of the network, and end")
    args = parser.parse_args()
    if args.plan:
        print(planned(FULL, args.minutes))
        return
    if args.data is None or args.out is None:
        parser.error("--data and --out must be given")
    made(Run(args))


if __name__ == "__main__":
    main()
