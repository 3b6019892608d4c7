"""Correctness before speed: a kernel is timed only if it agrees with the float64 reference on the same counters.

The tolerance is derived from the case itself: by how much the same formulas in plain float32 torch are off. That is
much where noise moments cancel or a fit jumps, and almost nothing elsewhere, so not the errors of single elements but
their quantiles are compared: one wrong element spoils the largest error, a small error everywhere the median. Each may
be 4 times that of torch (the largest, one draw from a long tail, 16 times), plus a few roundings of the largest result;
of a narrow output its rounding comes on top.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from cases import Case
from torch import Tensor

import gms_fast

EPS = 2.0**-23
NARROW = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # relative, of storing the result
QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
FACTORS = (4.0, 4.0, 4.0, 4.0, 16.0)


class WrongResultError(RuntimeError):
    """A kernel that disagrees with the reference."""


def check(case: Case) -> None:
    """Raise WrongResultError unless case.run agrees with itself in float64, on the case's first inputs."""
    inputs = case.sets[0]
    exact = _as_tuple(case.run(*(t.double() for t in inputs)))
    got = _errors(case.run(*inputs), exact)
    with _plain_torch(inputs[0].device.type):
        budget = _errors(case.run(*inputs), exact)
    for errors, usual, want in zip(got, budget, exact, strict=True):
        allowed = usual.new_tensor(FACTORS) * usual + 16 * EPS * want.abs().max()
        if not bool((errors <= allowed).all()):  # NaN is wrong too
            found = ", ".join(f"{q:.1%}: {e:.1e}" for q, e in zip(QUANTILES, errors.tolist(), strict=True))
            most = ", ".join(f"{a:.1e}" for a in allowed.tolist())
            raise WrongResultError(
                f"{case.name} disagrees with float64, nothing was timed: errors {found}; allowed {most}"
            )


def _errors(result: Tensor | tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[Tensor]:
    """Quantiles of the error of each output."""
    quantiles = []
    for got, want in zip(_as_tuple(result), exact, strict=True):
        error = ((got.double() - want).abs() - NARROW[got.dtype] * want.abs()).clamp(min=0).flatten().sort().values
        quantiles.append(error[[int(q * (len(error) - 1)) for q in QUANTILES]])
    return quantiles


@contextmanager
def _plain_torch(device: str) -> Iterator[None]:
    chosen = gms_fast.backends()["chosen"][device]
    gms_fast.set_backend("torch")
    try:
        yield
    finally:
        gms_fast.set_backend(None)
        if gms_fast.backends()["chosen"][device] != chosen:
            gms_fast.set_backend(chosen)


def _as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
