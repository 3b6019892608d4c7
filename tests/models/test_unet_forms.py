"""Optimised layers of the U-Net against the plain operations that they replace."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv1d, conv2d, group_norm, silu

from gms_fast.models import MomentUNet, unet

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = [
    {},
    {"head": "simple"},
    {"head": ("complex", None)},
    {"head": None},
    {"use_scale_shift_norm": False},
    {"num_heads": 1, "attention_resolutions": (1, 2)},
    {"out_channels": 4},
]


def network(dtype=torch.float64, **options):
    """A small network whose zero-initialised weights are random."""
    torch.manual_seed(0)
    small = {"image_size": 8, "in_channels": 2, "model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
    model = MomentUNet(**small | {"attention_resolutions": (2,)} | options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype)


def states(n=3):
    return torch.randn(n, 2, 8, 8, dtype=torch.float64), torch.tensor([3.0, 500, 999])[:n]


def conv(layer, x):
    return conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)


def norm(layer, x):
    return group_norm(x, 32, layer.weight, layer.bias, layer.eps)


def residual(layer, x, emb):
    norm_in, _, conv_in = layer.in_layers
    norm_out, _, _, conv_out = layer.out_layers
    h, e = conv(conv_in, silu(norm(norm_in, x))), layer.emb_layers(emb)[..., None, None]
    if layer.scale_shift:
        scale, shift = e.chunk(2, dim=1)
        h = norm(norm_out, h) * (1 + scale) + shift
    else:
        h = norm(norm_out, h + e)
    skip = layer.skip_connection
    return (x if isinstance(skip, nn.Identity) else conv(skip, x)) + conv(conv_out, silu(h))


def attention(layer, x, emb):
    b, c, h, w = x.shape
    qkv = conv1d(norm(layer.norm, x).flatten(2), layer.qkv.weight, layer.qkv.bias)
    q, k, v = qkv.reshape(b * layer.heads, 3 * c // layer.heads, h * w).chunk(3, dim=1)
    weights = (q.transpose(1, 2) @ k / (c // layer.heads) ** 0.5).softmax(-1)
    a = (v @ weights.transpose(1, 2)).reshape(b, c, h * w)
    return x + conv1d(a, layer.proj_out.weight, layer.proj_out.bias).reshape(x.shape)


PLAIN = {
    unet.Stem: lambda layer, x, emb: conv(layer, x),
    unet.ResBlock: residual,
    unet.AttentionBlock: attention,
    unet.Downsample: lambda layer, x, emb: conv(layer.op, x),
    unet.Upsample: lambda layer, x, emb: conv(layer.conv, x.repeat_interleave(2, 2).repeat_interleave(2, 3)),
}


def plain_block(block, x, emb):
    for layer in block:
        x = PLAIN[type(layer)](layer, x, emb)
    return x


def plain_output(layers, x, emb):
    *blocks, last, _, out = layers
    return conv(out, silu(norm(last, plain_block(blocks, x, emb))))


def plain(model, x, t):
    """The network's result with raw moments, written out in plain operations."""
    emb = model.time_embed(unet.timestep_embedding(t, model.model_channels).to(x.dtype))
    h, skips = x, []
    for block in model.input_blocks:
        h = plain_block(block, h, emb)
        skips.append(h)
    h = plain_block(model.middle_block, h, emb)
    for block in model.output_blocks:
        h = plain_block(block, torch.cat([h, skips.pop()], 1), emb)
    heads = [model.out, model.out2, model.out3]
    return [plain_output(head, h, emb)[:, : model.in_channels] for head in heads if head is not None]


def listed(output):
    return [output] if isinstance(output, torch.Tensor) else [e for e in output if e is not None]


def gradients(outputs, model):
    """Gradients by the parameters of one number to which all outputs contribute."""
    loss = sum((e**2).sum() for e in outputs)
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_and_gradients_are_those_of_the_plain_operations(options):
    model, (x, t) = network(**options), states()
    want, got = plain(model, x, t), listed(model(x, t))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients(got, model), gradients(want, model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def deviation(outputs, exact):
    return sum((e.double() - f).square().mean() for e, f in zip(listed(outputs), exact, strict=True)).sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_rounding_is_no_worse_than_that_of_the_plain_operations(dtype):
    model, (x, t) = network(), states()
    exact, x = plain(model, x, t), x.to(dtype)
    model = model.to(dtype)
    assert deviation(model(x, t), exact) < 1.2 * deviation(plain(model, x, t), exact)


@torch.no_grad()
def test_rounding_under_autocast_is_no_worse_either():
    model, (x, t) = network(), states()
    exact, model, x = plain(model, x, t), model.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert deviation(model(x, t), exact) < 1.2 * deviation(plain(model, x, t), exact)


@torch.no_grad()
def test_memory_format_changes_no_value():
    model, (x, t) = network(), states()
    want, last = listed(model(x, t)), torch.channels_last
    for given in (x, x.contiguous(memory_format=last)):
        torch.testing.assert_close(listed(model.to(memory_format=last)(given, t)), want, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_weights_that_change_between_calls_count():
    model, (x, t) = network(), states()
    model(x, t)
    for parameter in model.parameters():
        parameter.mul_(1.1)
    torch.testing.assert_close(listed(model(x, t)), plain(model, x, t), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_first_moment_runs_no_head():
    model, (x, t) = network(), states()
    want = model(x, t).e1
    model.out2 = model.out3 = None
    assert torch.equal(model.first_moment(x, t), want)


@torch.no_grad()
def test_features_of_one_pixel_are_normalised_for_each_sample():
    """A group of one number has no spread, so its norm only removes the mean."""
    model, (x, t) = network(channel_mult=(1, 1, 1, 1), attention_resolutions=()), states()
    torch.testing.assert_close(listed(model(x[:2], t[:2])), plain(model, x[:2], t[:2]), rtol=1e-12, atol=1e-12)


def test_the_whole_network_compiles_into_one_graph():
    model, (x, t) = network(torch.float32).eval(), states()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(listed(compiled(x.float(), t)), listed(model(x.float(), t)), rtol=0, atol=0)
    torch.compiler.reset()


def test_hooks_and_layers_put_in_place_of_others_are_called():
    """Low-rank adapters replace layers like this."""

    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, *inputs):
            return 1.5 * self.base(*inputs)

    model = network()
    x, t = states()
    with torch.no_grad():
        plain = model(x, t).e1
    for kind in (unet.Pointwise, unet.Skip, unet.Enlarging, unet.Narrow):
        model = network()
        layers = [layer for layer in model.modules() if type(layer) is kind]
        assert layers
        for layer in layers:
            layer.register_forward_hook(lambda _, __, output: 1.5 * output)
        with torch.no_grad():
            assert not torch.allclose(model(x, t).e1, plain)
    model, want = network(), network()
    for layer in model.modules():
        if isinstance(layer, unet.ResBlock) and not isinstance(layer.skip_connection, nn.Identity):
            skip = nn.Conv2d(layer.skip_connection.in_channels, layer.skip_connection.out_channels, 1).double()
            skip.load_state_dict(layer.skip_connection.state_dict())
            layer.skip_connection = Adapter(skip)
    for layer in want.modules():
        if isinstance(layer, unet.Skip):
            layer.weight.data.mul_(1.5)
            layer.bias.data.mul_(1.5)
    with torch.no_grad():
        torch.testing.assert_close(model(x, t).e1, want(x, t).e1, rtol=0, atol=1e-12)


def test_network_has_derivatives_of_every_kind():
    """Forward mode and second derivatives work; torch's fast CPU attention has neither."""
    model = network(head=None)
    x, t = states()
    along = torch.randn_like(x)
    with torch.no_grad():
        forward = torch.func.jvp(lambda x: model(x, t), (x,), (along,))[1]
        numeric = (model(x + 1e-6 * along, t) - model(x - 1e-6 * along, t)) / 2e-6
    torch.testing.assert_close(forward, numeric, rtol=0, atol=1e-7)
    with torch.no_grad():
        each = torch.func.vmap(lambda x, t: model(x[None], t[None])[0])(x, t)
        torch.testing.assert_close(each, model(x, t), rtol=0, atol=1e-12)
    leaf = x.clone().requires_grad_()
    slope = torch.autograd.grad(model(leaf, t).square().sum(), leaf, create_graph=True)[0]
    curve = torch.autograd.grad((slope * along).sum(), leaf)[0]
    assert curve.isfinite().all()
    assert curve.abs().max() > 0


def test_fast_attention_is_the_formula():
    q, k, v = torch.randn(3, 2, 4, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        fast = unet._attention(q, k, v)
    with torch.enable_grad():
        torch.testing.assert_close(unet._attention(q, k, v), fast, rtol=0, atol=1e-14)
