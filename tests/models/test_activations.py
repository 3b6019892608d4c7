"""Activations of a network: found by name, recorded in a call, and rearranged like samples."""

import pytest
import torch
from torch import nn

from gms_fast.models.activations import Layout, Watch, module_of, unpatched

NETWORK = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("module", "h", "x", "want"),
    [
        (nn.GroupNorm(1, 6), (6, 8, 8), (1, 8, 8), ("map", 6, 1)),
        (nn.Sequential(nn.GroupNorm(1, 6), nn.SiLU()), (6, 4, 2), (3, 8, 4), ("map", 6, 2)),
        (nn.Conv1d(6, 2, 1), (6, 10), (2, 10), ("map", 6, 1)),
        (nn.Conv3d(6, 2, 1), (6, 2, 4, 4), (2, 2, 4, 4), ("map", 6, 1)),
        (nn.Linear(6, 4), (16, 6), (1, 8, 8), ("tokens", 6, 2)),
        (nn.Linear(6, 4), (64, 6), (4, 8, 8), ("tokens", 6, 1)),
        (nn.LayerNorm(6), (5, 6), (2, 10), ("tokens", 6, 2)),
        (nn.Linear(6, 4), (16, 6), (16, 64), ("last", 6, 1)),
        (nn.Linear(6, 2), (6,), (2,), ("map", 6, 1)),
    ],
    ids=str,
)
def test_layout_by_shape_and_kind_of_module(module, h, x, want):
    assert Layout.of("out", module, h, x)[:3] == want


@pytest.mark.parametrize(
    ("h", "x"),
    [((6, 5, 5), (1, 8, 8)), ((6, 4, 8), (1, 8, 8)), ((17, 6), (1, 8, 8)), ((6,), (1, 8, 8)), ((6, 0, 0), (1, 8, 8))],
)
def test_activations_that_do_not_fit_are_refused(h, x):
    with pytest.raises(ValueError, match=r"features must be activations .*the input of 'mid' is"):
        Layout.of("mid", nn.GroupNorm(1, 6), h, x)


def test_tokens_are_laid_on_the_grid_that_they_were_cut_from():
    """Tokens are in row-major order, as patch embeddings flatten them."""
    x, grid = torch.zeros(2, 1, 4, 6), torch.randn(2, 8, 2, 3)
    both = Layout("tokens", 5, 2).parts(grid.flatten(2).transpose(1, 2), x)
    assert torch.equal(torch.cat(both, 1), unpatched(grid, 2))
    assert both[0].shape == x.shape


def test_parts_of_other_layouts():
    y = torch.randn(2, 6, 4)
    assert torch.equal(torch.cat(Layout("last", 5, 1).parts(y, torch.zeros(2, 6, 2)), -1), y)
    assert torch.equal(torch.cat(Layout("map", 5, 1).parts(y, torch.zeros(2, 3, 4)), 1), y)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_patches_are_laid_side_by_side(axes):
    """Element (i, j) of the patch at (r, c) goes to (p r + i, p c + j)."""
    p, grid = 2, (3, 2, 2)[:axes]
    y = torch.randn(2, 5 * p**axes, *grid)
    found = unpatched(y, p)
    assert found.shape == (2, 5, *(p * side for side in grid))
    split = y.view(2, 5, *[p] * axes, *grid)
    for place in torch.cartesian_prod(*(torch.arange(p * side) for side in grid)).view(-1, axes).tolist():
        origin = [k % p for k in place] + [k // p for k in place]
        assert torch.equal(found[(slice(None), slice(None), *place)], split[(slice(None), slice(None), *origin)])


def test_two_axes_are_torch_s_pixel_shuffle():
    y = torch.randn(2, 12, 3, 4)
    assert torch.equal(unpatched(y, 2), nn.functional.pixel_shuffle(y, 2))
    assert unpatched(y, 1) is y


def test_watch_sees_the_input_while_it_is_on():
    watch, x = Watch("2"), torch.randn(3, 4)
    watch.put_on(NETWORK.get_submodule("2"))
    NETWORK(x)
    y, seen = watch.during(lambda: NETWORK(x))
    NETWORK(x)
    assert torch.equal(y, NETWORK(x))
    assert torch.equal(watch.one(seen), NETWORK[1](NETWORK[0](x)))
    for wrong in ([], seen * 2):
        with pytest.raises(ValueError, match=f"once per network call, on a tensor: '2' was called {len(wrong)} times"):
            watch.one(wrong)


def test_unknown_names_come_with_near_ones():
    network = nn.Module()
    network.conv_norm_out = nn.Identity()
    with pytest.raises(ValueError, match=r"features must be .* got 'conv_norm'; the closest names are conv_norm_out"):
        module_of(network, "conv_norm")
    with pytest.raises(ValueError, match="got 7; the closest names are conv_norm_out"):
        module_of(network, 7)
    with pytest.raises(TypeError, match=r"network must be a torch\.nn.Module with modules inside: got function"):
        module_of(lambda x, t: x, "out")
