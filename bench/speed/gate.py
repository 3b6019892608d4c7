"""Correctness check before timing: a kernel must agree with the float64 reference.

Some elements amplify rounding without bound: noise moments cancel, and a fit may jump to its other component. So no
limit on the error of one element is right. Instead the kernel's errors are compared with those of the same formulas in
plain float32 torch, on the same counters: t. The kernel's errors may be FACTOR times as large, plus a few roundings of
the largest result, plus the rounding of a narrow output. What exceeds these allowances is g.

A kernel is right if in each element, independently of the others, the larger of g and t is the kernel's with a
probability of at most 1/2. Nothing else is assumed.

- Bulk. If the m-th largest g exceeds the k-th largest t, then at least m of the m + k - 1 largest errors are the
  kernel's. By Hoeffding's inequality the probability of that is at most exp(-(m - k)^2 / 2 (m + k)). `rank` chooses m
  to make it RARE. This is tested on one set of inputs, for k = 1, 2, 4, ...
- Tail. The largest g exceeds the largest t with a probability of at most 1/2. It does so in all of DRAWS independent
  sets of inputs with 2^-DRAWS, but always for a kernel with one wrong element.

With at most 4 outputs of 2^26 elements, a right kernel is refused with a probability below 4 (27 RARE + 2^-DRAWS),
which is less than 1e-6. NaN is refused at once.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

import gms_fast
from bench.speed.cases import Case, Inputs

EPS = 2.0**-23
NARROW = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # relative rounding of the result
FACTOR, ROUNDINGS = 4.0, 16
RARE, DRAWS = 1e-9, 23
FRESH = 1 << 20  # first seed of further draws; timing does not use these


class WrongResultError(RuntimeError):
    """A kernel that disagrees with the reference."""


class Errors(NamedTuple):
    """Errors of one output, and allowed errors, both in descending order."""

    found: Tensor
    allowed: Tensor

    def bulk(self) -> str:
        """Return the first disagreement of the two distributions, or ""."""
        if self.found[0].isnan():
            return "there is NaN"
        k = 1
        while (m := rank(k)) <= len(self.found):
            if self.found[m - 1] > self.allowed[k - 1]:
                return f"{m} errors are {self.found[m - 1]:.1e} or more, {self.allowed[k - 1]:.1e} is allowed"
            k *= 2
        return ""

    def tail(self) -> str:
        """Return a line about the largest error if it exceeds the allowed one, or ""."""
        found, allowed = self.found[0], self.allowed[0]
        return f"the largest error is {found:.1e}, {allowed:.1e} is allowed" if found > allowed else ""


def rank(k: int, rare: float = RARE) -> int:
    """Return m: a right kernel's m-th largest error rarely exceeds the k-th allowed one."""
    limit = -math.log(rare)
    return k + math.ceil(limit + math.sqrt(limit**2 + 4 * limit * k))


def check(case: Case) -> None:
    """Raise WrongResultError unless case.run agrees with itself in float64."""
    tails: dict[int, str] = {}
    for draw in range(DRAWS):
        outputs = list(_errors(case, case.sets.draw(FRESH + draw) if draw else case.sets[0]))
        if bulk := next(filter(None, (errors.bulk() for errors in outputs)), ""):
            raise WrongResultError(f"{case.name} disagrees with float64: {bulk}")
        tails = {i: tail for i, e in enumerate(outputs) if (tail := e.tail()) and (not draw or i in tails)}
        if not tails:
            return
    raise WrongResultError(f"{case.name} disagrees with float64: {min(tails.values())}, in each of {DRAWS} draws")


def _errors(case: Case, inputs: Inputs) -> Iterator[Errors]:
    """Yield the errors of each output, with those of plain torch plus all allowances."""
    exact = _as_tuple(case.run(*(t.double() for t in inputs)))
    found = [_excess(*pair) for pair in zip(_as_tuple(case.run(*inputs)), exact, strict=True)]
    with using("torch", inputs[0].device.type):
        usual = [_excess(*pair) for pair in zip(_as_tuple(case.run(*inputs)), exact, strict=True)]
    for errors, plain, want in zip(found, usual, exact, strict=True):
        yield Errors(errors, FACTOR * plain + ROUNDINGS * EPS * want.abs().max())


def _excess(got: Tensor, want: Tensor) -> Tensor:
    """Return the errors beyond the rounding of a narrow result, in descending order."""
    error = (got.double() - want).abs() - NARROW[got.dtype] * want.abs()
    return error.clamp(min=0).flatten().sort(descending=True).values


@contextmanager
def using(backend: str | None, device: str) -> Iterator[None]:
    """Use another backend for the ops on a device's tensors; None: the default one."""
    chosen = gms_fast.backends()["chosen"][device]
    gms_fast.set_backend(backend)
    try:
        yield
    finally:
        gms_fast.set_backend(None)
        if gms_fast.backends()["chosen"][device] != chosen:
            gms_fast.set_backend(chosen)


def _as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
