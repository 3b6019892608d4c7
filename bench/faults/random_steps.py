"""Random GMS steps: finite noise moments of any size must give a finite x_s.

The moments may contradict each other. The domain is |x|, |e1|, sqrt(|e2|) and cbrt(|e3|) up to 10^6, within the range
of the dtype. fit="adan" with moments="cumulant" needs a data range: x_t/alpha_t may be 157 times x_t, and its gradient
takes the sixth power. x_s may exceed the range of a narrow type, so it is written to float32.
"""

import random

import torch
from torch import Tensor

from gms_fast import StepCoefficients, ops
from gms_fast.schedules import VPLinear

LARGEST, LEAST = 6, -12  # exponents of ten
SCHEDULE = VPLinear()


def check(seed: int, fit: str, dtype: torch.dtype, size: int) -> str | None:
    """Make a step of `size` random states; return its fault, or None."""
    numbers, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    t, s = sorted(numbers.sample(range(1000), 2), reverse=True)
    x, e1, e2, e3 = (_of_any_size(generator, size, power) for power in (1, 1, 2, 3))
    if numbers.random() < 0.5:  # raw moments of a narrow posterior
        e2, e3 = e1**2 + e2.abs().clamp(max=1), e1**3 + 3 * e1 * e2.abs().clamp(max=1)
    moments = numbers.choice(("cumulant", "released"))
    ranges = ((-1.0, 1.0), (0.0, 255.0)) if fit == "adan" and moments == "cumulant" else ((-1.0, 1.0), None)
    options = {"fit": fit, "moments": moments, "central": numbers.random() < 0.5, "clip": numbers.choice(ranges)}
    most = torch.finfo(dtype).max
    inputs = [m.clamp(-most, most).to(dtype) for m in (x, e1, e2, e3)]
    out = torch.empty(x.shape, dtype=torch.promote_types(dtype, torch.float32))
    step = StepCoefficients.between(SCHEDULE, t, s)
    ops.gms_step(*inputs, step, component="element", seed=seed, out=out, **options)
    wrong = ~out.isfinite()
    if not wrong.any():
        return None
    given, found = ([m[wrong][0].item() for m in tensors] for tensors in (inputs, [out]))
    return f"{given} give {found[0]} from t={t} to {s}, {options}"


def _of_any_size(generator: torch.Generator, size: int, power: int) -> Tensor:
    """Draw numbers of either sign up to 10^(6 power), and zeros."""
    uniform = torch.rand((3, 1, size), generator=generator, dtype=torch.float64)
    magnitude = 10 ** (power * (LEAST + (LARGEST - LEAST) * uniform[0]))
    return torch.where(uniform[1] < 0.1, 0, torch.where(uniform[2] < 0.5, -magnitude, magnitude))
