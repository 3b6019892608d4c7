"""Counter-based noise: known answers, independence of the batch, and distributions."""

import math

import pytest
import torch

from gms_fast import ops
from gms_fast.ops import reference

KNOWN = [  # Random123's vectors for philox4x32-10: counter, key, words
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_reference_gives_the_published_words(counter, key, words):
    as_tensors = [torch.tensor([w], dtype=torch.int64) for w in (*counter, *key)]
    got = reference.philox_words(tuple(as_tensors[:4]), tuple(as_tensors[4:]))
    assert tuple(int(w) for w in got) == words


def test_uniforms_are_the_words_in_element_order():
    u = ops.philox_uniform((1, 4), seed=0)
    want = torch.tensor(KNOWN[0][2], dtype=torch.float64).float() * 2.0**-32 + 2.0**-33
    assert torch.equal(u[0], want)


def test_normals_are_box_muller_of_the_words():
    u = [float(v) for v in ops.philox_uniform((1, 4), seed=0)[0]]
    want = []
    for a, b in ((u[0], u[1]), (u[2], u[3])):
        r = math.sqrt(-2 * math.log(a))
        want += [r * math.cos(2 * math.pi * b), r * math.sin(2 * math.pi * b)]
    assert ops.philox_normal((1, 4), seed=0, dtype=torch.float64)[0].tolist() == pytest.approx(want, rel=1e-14)
    assert ops.philox_normal((1, 4), seed=0)[0].tolist() == pytest.approx(want, rel=8 * 2**-23)


@pytest.mark.parametrize("draw", [ops.philox_normal, ops.philox_uniform])
def test_every_counter_word_matters_and_backends_agree(draw):
    shape = (3, 5, 7)
    base = {"seed": 5, "step": 2, "stream": 0, "sample_offset": 9}
    changes = [{}, {"seed": 6}, {"seed": 5 + (1 << 32)}, {"step": 3}, {"stream": 1}, {"sample_offset": 10}]
    changes += [{"sample_offset": 9 + (1 << 32)}, {"sample_offset": 9 + (1 << 50)}]
    changes += [{"seed": (1 << 64) - 1}, {"seed": -1}]
    drawn = [draw(shape, **(base | c)) for c in changes]
    for i, a in enumerate(drawn[:-1]):
        for b in drawn[i + 1 : -1]:
            assert not torch.equal(a, b)
    assert torch.equal(drawn[-2], drawn[-1])  # -1 and 2^64 - 1 are the same 64 bits
    for c, a in zip(changes, drawn, strict=True):
        torch.testing.assert_close(a.double(), draw(shape, **(base | c), dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_sample_has_the_same_bits_in_any_batch():
    whole = ops.philox_normal((64, 3, 11), seed=7, step=4)
    for size in (1, 7):
        chunks = torch.arange(64).split(size)
        parts = [ops.philox_normal((len(c), 3, 11), seed=7, step=4, sample_offset=int(c[0])) for c in chunks]
        assert torch.equal(torch.cat(parts), whole)


def test_per_sample_seeds_are_keys_with_sample_index_zero():
    seeds = [11, 3, (1 << 64) - 1]
    batch = ops.philox_normal((3, 10), seed=seeds, step=1)
    for row, seed in zip(batch, seeds, strict=True):
        assert torch.equal(row, ops.philox_normal((1, 10), seed=seed, step=1)[0])
    assert torch.equal(batch.flip(0), ops.philox_normal((3, 10), seed=seeds[::-1], step=1))


def test_laws():
    z, u = ops.philox_normal((64, 1 << 14), seed=1).double(), ops.philox_uniform((64, 1 << 14), seed=1).double()
    n = z.numel()
    for k, want, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**k).mean()) - want) < 5 * math.sqrt(variance / n)
    assert abs(float(u.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / n)
    neighbours = float((z[:, :-1] * z[:, 1:]).mean())
    assert abs(neighbours) < 5 / math.sqrt(n)
    assert 0 < float(u.min()) <= float(u.max()) <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_round_the_float32_draws(dtype):
    assert torch.equal(ops.philox_normal((2, 9), seed=3, dtype=dtype), ops.philox_normal((2, 9), seed=3).to(dtype))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1 << 64}, "seed must fit in 64 bits"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"seed": [1, 2, 3]}, r"seeds must be \(2,\) or \(\) int64"),
        ({"seed": 0, "step": -1}, "step index must lie in"),
        ({"seed": 0, "stream": 256}, "stream must lie in"),
        ({"seed": 0, "sample_offset": 1 << 56}, "sample_offset must lie in"),
        ({"seed": 0, "dtype": torch.int32}, "dtype must be float32"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ops.philox_normal((2, 3), **arguments)
