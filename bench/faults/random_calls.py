"""Random calls of every op; every third call has an argument that must be refused."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bench.faults.outcomes import Arguments, Call
from bench.faults.random_tensors import APART, DTYPES, Tensors
from gms_fast import StepCoefficients
from gms_fast.schedules import VPLinear

FITS = ("exact", "free", "adan", "gaussian")
SCHEDULE = VPLinear()


def _seed(draw: Tensors) -> object:
    samples, word = draw.shape[0], draw.numbers.randint(-(1 << 63), (1 << 64) - 1)
    return draw.choice([word, np.int64(7), [word] * samples, draw.integers((samples,)), draw.integers(())])


def _counters(draw: Tensors, step: str) -> Arguments:
    index = draw.choice((0, draw.numbers.randrange(1 << 32), (1 << 32) - 1))
    offsets = 0, draw.numbers.randrange(1 << 55), (1 << 56) - draw.shape[0]
    return {
        "seed": _seed(draw),
        step: torch.tensor(index) if draw.chance(0.2) else index,
        "sample_offset": draw.choice(offsets),
    }


def _fit(draw: Tensors) -> Arguments:
    weights = 1 / 3, draw.numbers.uniform(1e-6, 0.499), draw.numbers.uniform(0.501, 1 - 1e-6)
    return {"fit": draw.choice(FITS), "weight": draw.choice(weights)}


def _adan(draw: Tensors) -> Arguments:
    return {"iterations": draw.numbers.randint(0, 3), "lr": draw.choice((0.0, 0.06)), "eps": draw.choice((1e-8, 0.1))}


def _component_and_noise(draw: Tensors) -> Arguments:
    """Draw the argument noise as None, z, or (z, u), where either may be None."""
    component = draw.choice(("sample", "element"))
    z, u = draw.tensor(), draw.tensor(draw.shape if component == "element" else draw.shape[:1])
    return {"component": component, "noise": draw.choice([None, None, z, (z, None), (None, u), [z, u]])}


def _out(draw: Tensors, like: Tensor) -> Tensor | None:
    """Draw the argument out: None, a new tensor, or memory of the first input.

    In the last case it may be the input itself or overlap it.
    """
    if draw.chance(0.4):
        return None
    if like.is_contiguous() and not like.is_neg() and draw.chance(0.5):
        return like.as_strided(like.shape, like.stride(), draw.choice((0, like.storage_offset())))
    return draw.tensor(layouts=APART)


def _moments(draw: Tensors) -> Arguments:
    return {"mean": draw.tensor(), "var": draw.tensor(), "third": draw.tensor(), "floor": draw.choice((0.0, 0.1, 1e30))}


def fit_mixture(draw: Tensors) -> Arguments:
    return {**_moments(draw), **_fit(draw), **_adan(draw)}


def sample_mixture(draw: Tensors) -> Arguments:
    return {**_moments(draw), **_fit(draw), **_component_and_noise(draw), **_counters(draw, "step")}


def gms_step(draw: Tensors) -> Arguments:
    t, s = sorted(draw.numbers.sample(range(1000), 2), reverse=True)
    step, fit = StepCoefficients.between(SCHEDULE, t, s), _fit(draw)
    moments = draw.choice(("cumulant", "released"))
    inputs = {name: draw.tensor() for name in ("x", "e1", "e2", "e3")}
    for name in ("e3", *["e2"] * (moments == "cumulant")):
        if fit["fit"] == "gaussian" and draw.chance(0.5):
            inputs[name] = None
    return {
        **inputs,
        "step": draw.choice((step, step.as_tensor())),
        "moments": moments,
        "central": draw.chance(0.5),
        "clip": draw.choice((None, (-1.0, 1.0), (0, 255))),
        "out": _out(draw, inputs["x"]),
        **fit,
        **_adan(draw),
        **_component_and_noise(draw),
        **_counters(draw, "step_index"),
    }


def affine_noise(draw: Tensors) -> Arguments:
    x, terms = draw.tensor(), [draw.tensor() for _ in range(draw.choice((0, 1, 2, 3, 8)))]
    numbers = [draw.numbers.gauss(0, 1) for _ in (x, *terms)]
    std = draw.choice((0.0, 0.3))
    kinds = [(numbers, std), (torch.tensor([*numbers, std]), 0.0)]
    if len(draw.shape) > 1:
        wide = torch.float64 in {t.dtype for t in (x, *terms)} and draw.chance(0.5)
        by_element = draw.tensor((len(terms) + 2, *draw.shape[1:]), torch.float64 if wide else torch.float32)
        kinds.append((by_element, std))
    weights, std = draw.choice(kinds)
    inputs = {"x": x, "terms": terms, "weights": weights, "noise_std": std, "noise": draw.choice((None, draw.tensor()))}
    return {**inputs, "out": _out(draw, x), **_counters(draw, "step_index")}


def philox(draw: Tensors) -> Arguments:
    return {
        "shape": draw.choice((draw.shape, list(draw.shape), torch.Size(draw.shape))),
        **_counters(draw, "step"),
        "stream": draw.choice((0, 5, 255)),
        "dtype": draw.choice((None, *DTYPES)),
    }


MAKERS: dict[str, Callable[[Tensors], Arguments]] = {
    "fit_mixture": fit_mixture,
    "sample_mixture": sample_mixture,
    "gms_step": gms_step,
    "affine_noise": affine_noise,
    "philox_normal": philox,
    "philox_uniform": philox,
}
NAN, INF = math.nan, math.inf
LARGE = torch.zeros(7, 7, 7)  # a shape that no call uses
ONE = torch.tensor(1)
NO_NUMBER: tuple[object, ...] = ("a", None, [0.3], torch.ones(2), 1j)
INDICES = (-1, 1 << 32, 2.5, "1", None, ONE.expand(2), torch.tensor(1.5), ONE.to("meta"))
REFUSED: dict[str, tuple[object, ...]] = {  # by argument, of any op that has it
    "fit": ("mean", None, 3, ["exact"]),
    "weight": (0.0, 1.0, -1.0, NAN, INF, 1e-9, *NO_NUMBER),
    "iterations": (-1, 1 << 31, 2.5, *NO_NUMBER),
    "lr": (-0.1, NAN, INF, *NO_NUMBER),
    "eps": (-1e-8, 0.0, 1e-30, NAN, INF, *NO_NUMBER),
    "floor": (-1.0, NAN, INF, *NO_NUMBER),
    "component": ("pixel", None, 3, ["sample"]),
    "moments": ("raw", None, 3),
    "clip": ((1.0, -1.0), (0.0, 0.0), (NAN, 1.0), (0.0, INF), 1.0, "ab", (1.0, 2.0, 3.0), ()),
    "seed": (1 << 64, -(1 << 63) - 1, 2.5, "7", None, ONE.to("meta"), ONE.expand(2, 2), ONE.float(), [0.5], range(99)),
    "step_index": INDICES,
    "step": INDICES,
    "sample_offset": (-1, (1 << 56) + 1, 0.5, *NO_NUMBER),
    "noise": (0.5, "z", LARGE, LARGE.int(), (LARGE[0],), (1, 2)),
    "noise_std": (-1.0, NAN, INF, *NO_NUMBER),
    "weights": ([], [1.0] * 11, [NAN] * 9, 1.0, "ab", None, torch.zeros(12), torch.zeros(3).int(), LARGE),
    "terms": (None, 3, LARGE, [None], [LARGE] * 2, [0.5]),
    "stream": (-1, 256, 1.5, *NO_NUMBER),
    "shape": ((), (-1, 2), 3, (1.5,), "ab", None, ((2,),)),
    "dtype": (torch.int32, torch.complex64, "float32", 3),
}
NO_COEFFICIENTS = (None, (1.0, 2.0), torch.zeros(9), torch.zeros(10).double(), torch.zeros(2, 5), "step")


def _strange(tensor: Tensor, first: bool) -> list[object]:
    """Return values that must be refused in place of a tensor.

    The op's first tensor sets shape and device, so these are not tested for it.
    """
    kinds = [
        *(3.0, "tensor", [1.0], np.zeros(tensor.shape, dtype=np.float32), torch.tensor(1.0)),
        *(tensor.to(dtype) for dtype in (torch.int32, torch.complex64, torch.bool)),
        torch.zeros(tensor.shape).to_sparse(),
    ]
    return kinds if first else [*kinds, torch.zeros((*tensor.shape, 2)), torch.empty(tensor.shape, device="meta")]


def call(seed: int) -> Call:
    """Draw a call; every third seed gives one with a wrong argument."""
    draw = Tensors(seed)
    op = draw.choice(list(MAKERS))
    arguments = MAKERS[op](draw)
    if seed % 3:
        return Call(op, arguments, backend=draw.choice((None, None, "torch")))
    name = draw.choice([n for n, value in arguments.items() if n in REFUSED or isinstance(value, Tensor)])
    if op == "gms_step" and name == "step":
        kinds = NO_COEFFICIENTS
    else:
        kinds = REFUSED.get(name) or _strange(arguments[name], first=name == next(iter(arguments)))
    return Call(op, {**arguments, name: draw.choice(kinds)}, wrong=name)
