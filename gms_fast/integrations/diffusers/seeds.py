"""Seeds of a run, drawn from the generators of a pipeline."""

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None
_FIRST, _END = -(2**63), 2**63 - 1


def seeds(generator: Generators, sample: Tensor) -> int | Tensor:
    """Draw one seed for all samples from one generator, or (n,) int64 seeds from a list.

    Without a generator torch's own is used. Raises ValueError for a list of another length, and for a generator that is
    neither on the sample's device nor on the CPU.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return _seed(generator, sample)
    if len(generator) != len(sample):
        raise ValueError(f"generator must be a single one or a list of {len(sample)}: got a list of {len(generator)}")
    return torch.tensor([_seed(g, sample) for g in generator], dtype=torch.int64)


def _seed(generator: torch.Generator | None, sample: Tensor) -> int:
    device = torch.device("cpu") if generator is None else generator.device
    if device.type not in ("cpu", sample.device.type):
        raise ValueError(f"generator must be on {sample.device}, like the sample, or on the CPU: got one on {device}")
    return int(torch.randint(_FIRST, _END, (), generator=generator, device=device))
