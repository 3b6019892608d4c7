"""Counter-based noise: Philox4x32-10 (Salmon et al. 2011).

Each draw is a pure function of (seed, sample, step, element).

Counter words: c0 = element // 4, c1 = step, c2 = sample & 0xffffffff, c3 = (sample >> 32) << 8 | stream.
Key words: low and high half of the seed. Word j of a call belongs to element 4 c0 + j.
"""

import math

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF


def _mul32(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Return the high and low word of a m, for 32-bit words kept in int64.

    m is split into halves, because the whole product would overflow.
    """
    low, high = a * (m & 0xFFFF), a * (m >> 16)
    mid = (low >> 16) + (high & 0xFFFF)
    return (high >> 16) + (mid >> 16), ((mid & 0xFFFF) << 16) | (low & 0xFFFF)


def philox_words(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return four random words for four counter words and two key words.

    All are 32-bit values in int64 tensors that broadcast.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        hi0, lo0 = _mul32(c0, MULTIPLIERS[0])
        hi1, lo1 = _mul32(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def _words(seeds: Tensor, samples: Tensor, step: int | Tensor, stream: int, elements: int) -> tuple[Tensor, ...]:
    """Return words (B, ceil(elements / 4)) for seeds (B,) and sample indices (B,), int64."""
    quads = torch.arange((elements + 3) // 4, dtype=torch.int64, device=seeds.device)[None]
    seeds, samples = seeds[:, None], samples[:, None]
    counter = (quads, (torch.zeros_like(quads) + step) & MASK, samples & MASK, ((samples >> 32) << 8) | stream)
    return philox_words(counter, (seeds & MASK, (seeds >> 32) & MASK))


def _uniform(word: Tensor) -> Tensor:
    """Return u = w 2^-32 + 2^-33 in float32, in (0, 1]."""
    return word.to(torch.float32) * 2.0**-32 + 2.0**-33


def philox_uniform(
    seeds: Tensor, samples: Tensor, step: int | Tensor, stream: int, elements: int, dtype: torch.dtype
) -> Tensor:
    """Return uniforms (B, elements)."""
    u = torch.stack([_uniform(w) for w in _words(seeds, samples, step, stream, elements)], dim=-1)
    return u.flatten(1)[:, :elements].to(dtype)


def philox_normal(
    seeds: Tensor, samples: Tensor, step: int | Tensor, stream: int, elements: int, dtype: torch.dtype
) -> Tensor:
    """Return standard normals (B, elements), two Box-Muller pairs for each Philox call.

    They are computed in `dtype` from float32 uniforms.
    """
    u = [_uniform(w).to(dtype) for w in _words(seeds, samples, step, stream, elements)]
    z = []
    for radius, angle in ((u[0], u[1]), (u[2], u[3])):
        r = (-2 * radius.log()).sqrt()
        z += [r * (2 * math.pi * angle).cos(), r * (2 * math.pi * angle).sin()]
    return torch.stack(z, dim=-1).flatten(1)[:, :elements]
