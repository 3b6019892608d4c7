"""Targets on a GPU: the rows of the README's GPU table.

`gpu_rows` measures them, and `bench.docs.readme` shows them.
"""

from typing import NamedTuple

from bench.speed.bars import Bar, bound_by

CARDS = ("H100", "H200")


class Target(NamedTuple):
    """A bar and an aim for a figure.

    Args:
        name: The figure.
        bar: Value that a release should reach.
        aim: Better value to work towards.
        form: Format of values.
        at_most: True if smaller is better.
        card: GPU that the bar is for; empty: any.
        predicted: Row of `predict` with a prediction of the figure.
    """

    name: str
    bar: float
    aim: float
    form: str = "{:.0%}"
    at_most: bool = False
    card: str = ""
    predicted: str = ""

    def reached(self, value: float, *rows: dict) -> Bar:
        """Return the bar with a measured value, made of `rows`."""
        return Bar(self.name, value, self.bar, self.aim, self.at_most, bound_by(*rows))


_COPY = "share of a copy's bandwidth"
_NARROW = "exact/sample, bfloat16 moments and output"
TARGETS = {
    "float32": Target(
        f"`gms_step` exact/sample, float32: {_COPY}", 0.9, 0.97, predicted="gms_step exact/sample, float32"
    ),
    "bfloat16, H100": Target(f"`gms_step` {_NARROW}: {_COPY} (bar of an H100)", 0.8, 0.95, card="H100"),
    "bfloat16, H200": Target(
        f"`gms_step` {_NARROW}: {_COPY} (bar of an H200)", 0.6, 0.75, card="H200", predicted=f"gms_step {_NARROW}"
    ),
    "free": Target(f"`gms_step` free/element, float32: {_COPY}", 0.6, 0.8, predicted="gms_step free/element, float32"),
    "affine": Target(f"`affine_noise`, three terms with noise, float32: {_COPY}", 0.9, 0.97),
    "released": Target(
        "released-style fit under autograd / `gms_step` exact/sample, 512x3x32x32", 300, 2000, "{:.0f}x"
    ),
    "compiled": Target("the closed fit under `torch.compile` / `gms_step` exact/sample", 1.5, 3, "{:.1f}x"),
    "host": Target("host time of one call, µs", 12, 6, "{:.1f}", at_most=True),
    "outside": Target("share of sampling outside a CIFAR-10 U-Net, batch 128", 0.01, 0.002, "{:.1%}", at_most=True),
    "graph": Target("ten steps, small network, batch 1: eager / in one CUDA graph", 2, 5, "{:.1f}x"),
    "launches": Target("launches outside the network for a call of it, of any solver", 1, 1, "{:.1f}", at_most=True),
    "bits": Target("ops that give the bits of the CPU", 1, 1),
}


def card(gpu: str) -> str:
    """Return the card whose bars apply to a GPU of this name."""
    return next((name for name in reversed(CARDS) if name in gpu), CARDS[0])


def share(target: str, rows: list[dict], name: str) -> list[Bar]:
    """Return the share of the copy bandwidth of the row `name`, if it was measured."""
    return [TARGETS[target].reached(row["of_copy"], row) for row in rows if row["name"] == name]


def over(target: str, rows: list[dict], slow: str, fast: str) -> list[Bar]:
    """Return the ratio of two rows' times, if both were measured."""
    return [
        TARGETS[target].reached(a["over_randn"][1] / b["over_randn"][1], a, b)
        for a in rows
        for b in rows
        if (a["name"], b["name"]) == (slow, fast)
    ]
