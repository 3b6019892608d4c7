"""Seeds of a run, from the generators that a pipeline hands on."""

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None
_FIRST, _END = -(2**63), 2**63 - 1


def seeds(generator: Generators, sample: Tensor) -> int | Tensor:
    """A seed for all samples from one generator, or from torch's own; of a list one a sample, (n,) int64.

    Raises ValueError for a list of another length, and for a generator on a device that is neither the sample's nor
    the CPU.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return _seed(generator, sample)
    if len(generator) != len(sample):
        raise ValueError(f"generator must be one, or one for each of {len(sample)} samples: got {len(generator)}")
    return torch.tensor([_seed(g, sample) for g in generator], dtype=torch.int64)


def _seed(generator: torch.Generator | None, sample: Tensor) -> int:
    device = torch.device("cpu") if generator is None else generator.device
    if device.type not in ("cpu", sample.device.type):
        raise ValueError(f"generator must be on {sample.device} like sample, or on the CPU: got one on {device}")
    return int(torch.randint(_FIRST, _END, (), generator=generator, device=device))
