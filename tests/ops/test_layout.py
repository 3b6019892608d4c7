"""Layouts: results that do not depend on the place of elements in memory."""

import pytest
import torch
from op_inputs import DTYPES, LAYOUTS, by_element, compiled, gms_step, tensors

from gms_fast import ops


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded", "channels", "transposed"])
def test_values_do_not_depend_on_the_layout(layout, dtype):
    moved = tensors(4, dtype, layout)
    plain = [t.contiguous() for t in moved]
    assert not moved[0].is_contiguous()
    for fit in ("exact", "free"):
        assert torch.equal(gms_step(*moved, fit=fit), gms_step(*plain, fit=fit))
        assert torch.equal(ops.sample_mixture(*moved[:3], fit=fit), ops.sample_mixture(*plain[:3], fit=fit))
        for a, b in zip(ops.fit_mixture(*moved[:3], fit=fit), ops.fit_mixture(*plain[:3], fit=fit), strict=True):
            assert torch.equal(a, b)
            assert a.stride() == torch.empty_like(moved[0]).stride()
            assert a.dtype == dtype
        mixed = [moved[0], plain[1], moved[2], plain[3]]
        assert torch.equal(gms_step(*mixed, fit=fit), gms_step(*plain, fit=fit))
    terms, weights = moved[1:], [0.5, -2.0, 0.25, 1.0]
    got = ops.affine_noise(moved[0], terms, weights, 0.3, seed=4)
    assert torch.equal(got, ops.affine_noise(plain[0], plain[1:], weights, 0.3, seed=4))


def test_layouts_of_many_dimensions_are_copied():
    """Use layouts with more than three strides."""
    x = torch.rand(2, 3, 4, 5, 6, 2)[..., 0].permute(0, 4, 2, 3, 1)
    moved = [x, *(torch.rand(2, 6, 4, 5, 3) for _ in range(3))]
    assert torch.equal(gms_step(*moved), gms_step(*(t.contiguous() for t in moved)))
    out = torch.empty(2, 3, 4, 5, 6, 2)[..., 0].permute(0, 4, 2, 3, 1)
    assert torch.equal(gms_step(*moved, out=out), gms_step(*moved))


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["channels_last", "strided", "channels", "transposed"])
def test_weights_by_element_follow_the_logical_index(layout, dtype):
    plain = tensors(4, dtype)
    moved = [LAYOUTS[layout](t) for t in plain]
    weights = by_element(3, plain[0])
    negated = torch._neg_view(-weights)
    want = ops.affine_noise(plain[0], plain[1:], weights, 0.3, seed=4)
    for x, *terms in (moved, [moved[0], *plain[1:]], [plain[0], *moved[1:]]):
        for w in (weights, LAYOUTS[layout](weights), negated, torch.complex(weights, -weights).conj().imag):
            assert torch.equal(ops.affine_noise(x, terms, w, 0.3, seed=4), want)


def test_weights_by_element_without_three_strides():
    """Use tensors that must be copied, and weights with them."""
    x = torch.rand(2, 3, 4, 5, 6, 2)[..., 0].permute(0, 4, 2, 3, 1)
    weights = by_element(1, x)
    want = ops.affine_noise(x.contiguous(), [x.contiguous()], weights, 0.3)
    assert torch.equal(ops.affine_noise(x, [x], weights, 0.3), want)
