"""Losses of both stages: deviations in float64, known minima, and a frozen network."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from denoisers import MEANS, VARIANCES, WEIGHTS
from small_heads import Gaussian, Small, heads, pictures, said
from strange_networks import OF_PICTURES, Convolutional
from tiny_networks import TINY

from gms_fast import prediction, schedules
from gms_fast.models import MomentHeads, MomentUNet
from gms_fast.models.level_table import LevelTable
from gms_fast.training import loop, losses, train_moment_heads, train_noise_network
from gms_fast.training.noising import noised

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = {"warmup": 2, "progress": False, "checkpoint_every": 100, "batch_size": 8}
NAMES = ("linear", "cosine", "vp", "vp-cosine", "edm", "flow")
EVERY = [*itertools.product(NAMES, prediction.names())]


def batch_of(schedule, x_0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return noised(schedule, x_0, {}, slice(0, len(x_0)), len(x_0), generator, torch.device("cpu"))


def wide(batch):
    """Levels, noise and state in float64, the state not rounded."""
    x_0, eps, alpha, sigma = (tensor.double() for tensor in batch[:4])
    return x_0, eps, alpha, sigma, alpha * x_0 + sigma * eps


def mixture(n=4000):
    generator = torch.Generator().manual_seed(2)
    of = torch.multinomial(WEIGHTS, n, replacement=True, generator=generator)
    return (MEANS[of] + VARIANCES[of].sqrt() * torch.randn(n, generator=generator, dtype=torch.float64)).float()[
        :, None
    ]


def mean_of_mixture(x, alpha, sigma):
    """E[x_0|x_t] of the mixture."""
    total = alpha**2 * VARIANCES + sigma**2
    log = WEIGHTS.log() - total.log() / 2 - (x - alpha * MEANS) ** 2 / (2 * total)
    return (log.softmax(-1) * (MEANS + alpha * VARIANCES / total * (x - alpha * MEANS))).sum(-1, keepdim=True)


def told(form, clip, normalised=True, data_std=0.7):
    return SimpleNamespace(prediction=form, clip=clip, normalised=normalised, data_std=data_std)


# --- deviations ---


@pytest.mark.parametrize(("name", "form"), EVERY)
@pytest.mark.parametrize("clip", [None, (-0.8, 0.9)])
def test_deviation_is_that_of_the_mathematics(name, form, clip):
    """y = (m - x_0)/c with m the clipped E[x_0|x_t] of a mixture.

    c = s sigma/(alpha^2 s^2 + sigma^2)^(1/2).
    """
    schedule = schedules.build(name)
    batch = batch_of(schedule, mixture())
    x_0, eps, alpha, sigma, x = wide(batch)
    m = mean_of_mixture(x, alpha, sigma)
    output = said(form, m, x, alpha, sigma)
    got = losses._deviation(told(form, clip), batch, output.float())
    m = m if clip is None else m.clamp(*clip)
    wanted = (m - x_0) * (alpha**2 * 0.49 + sigma**2).sqrt() / (0.7 * sigma)
    rounded = 2.0**-22 * ((1 + x.abs() + output.abs()) / alpha + eps.abs() + 1) / sigma  # of x, of terms of m
    rounded *= (alpha**2 * 0.49 + sigma**2).sqrt() / 0.7
    assert ((got - wanted).abs() <= rounded + 1e-5 * wanted.abs()).all()
    assert wanted.abs().median() > 0.1


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_deviation_in_the_unit_of_a_level_is_that_of_the_noise(name, form):
    """unit y = eps - e1 where m is not clipped, with the unit by which heads are scaled."""
    schedule = schedules.build(name)
    batch = batch_of(schedule, mixture(500))
    _, eps, alpha, sigma, x = wide(batch)
    m = mean_of_mixture(x, alpha, sigma)
    output = said(form, m, x, alpha, sigma).float()
    unit = LevelTable(schedule, 0.7)(batch.time, batch.x_t).unit
    wanted = eps - (x - alpha * m) / sigma
    clear = ((alpha > 0.05) & (sigma > 0.05)).flatten()  # of what float32 loses
    assert clear.sum() > 100
    for normalised, factor in ((True, unit), (False, 1.0)):
        got = losses._deviation(told(form, None, normalised), batch, output) * factor
        torch.testing.assert_close(got[clear].double(), wanted[clear], rtol=1e-3, atol=2e-4)


# --- minima ---


def constant(model, second, third):
    """Heads with constant outputs, in the units in which they learn."""
    channels = model.sample_shape[0]
    with torch.no_grad():
        model.heads.out[-1].bias[:channels] = math.log(math.expm1(second))  # of softplus
        model.heads.out[-1].bias[channels:] = third
    return model


def gaussian(n, std):
    return std * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_loss_of_true_moments_is_what_the_mathematics_says(name, form):
    """For Gaussian data y is N(0, 1) at every level.

    By the tower property the least loss is Var[y^2] + Var[y^3] = 2 + 15.
    """
    model = constant(heads(Gaussian(name, form, 0.6), data_std=0.6, head="simple"), 1.0, 0.0)
    batch, loss = batch_of(model.schedule, gaussian(30000, 0.6)), losses.moment_loss("central")
    least = float(loss(model, batch, torch.float32))
    assert least == pytest.approx(17, rel=0.04)  # Var[y^6] = 10170, over 480000 elements
    second = losses._deviation(model, batch, model.first_moment(batch.x_t, batch.time)).square()
    assert float(second.mean()) == pytest.approx(1, rel=0.01)
    for away in ((1.5, 0.0), (0.7, 0.0), (1.0, 0.5)):
        more = (away[0] - 1) ** 2 + away[1] ** 2
        assert float(loss(constant(model, *away), batch, torch.float32)) - least == pytest.approx(more, rel=0.1)


def test_moments_of_true_heads_are_those_of_the_noise_at_every_level():
    """For Gaussian data Var[eps|x_t] = alpha^2 s^2/(alpha^2 s^2 + sigma^2).

    The third moment is zero.
    """
    for name, form in EVERY:
        model = constant(heads(Gaussian(name, form, 0.6), data_std=0.6), 1.0, 0.0)
        batch = batch_of(model.schedule, gaussian(50, 0.6))
        signal = (batch.alpha.double() * 0.6) ** 2
        with torch.no_grad():
            _, second, third = model(batch.x_t, batch.time)
        wanted = (signal / (signal + batch.sigma.double() ** 2)).expand(second.shape)
        torch.testing.assert_close(second.double(), wanted, rtol=1e-4, atol=1e-7)
        assert (third == 0).all()


@pytest.mark.parametrize(("name", "form"), [("edm", "edm"), ("flow", "flow"), ("vp", "v")])
def test_heads_learn_the_moments_of_gaussian_data(tmp_path, name, form):
    model = heads(Gaussian(name, form, 0.6), data_std=0.6, head="simple")
    options = {**QUIET, "batch_size": 64, "warmup": 10, "ema": 0.9}
    train_moment_heads(model, gaussian(5000, 0.6), steps=150, out=tmp_path, lr=0.02, **options)
    batch = batch_of(model.schedule, gaussian(500, 0.6), seed=9)
    with torch.no_grad():
        second, third = model.heads(*model.observed(batch.x_t, batch.time)[1])
    assert float(second.mean()) == pytest.approx(1, abs=0.1)
    assert float(third.mean()) == pytest.approx(0, abs=0.4)


@pytest.mark.parametrize("target", ["raw", "central"])
def test_loss_of_plain_heads_is_that_of_powers_of_the_noise(target):
    """Heads start at 0, so the loss is E y^4 + E y^6.

    It is 3 + 15 for raw moments, and v^2 3 + v^3 15 for central ones.
    """
    model = heads(Gaussian("linear", "v", 0.6), moments=target, normalised=False)
    batch = batch_of(model.schedule, gaussian(30000, 0.6))
    variance = 0.36 * batch.alpha**2 / (0.36 * batch.alpha**2 + batch.sigma**2) if target == "central" else 1.0
    wanted = torch.as_tensor(3 * variance**2 + 15 * variance**3).mean()
    assert float(losses.moment_loss(target)(model, batch, torch.float32)) == pytest.approx(float(wanted), rel=0.04)


def test_noise_loss_is_the_mean_square_of_what_is_left_of_the_noise():
    model = MomentUNet(**{**TINY, "image_size": 4}, attention_resolutions=(), head=None)  # its output starts at 0
    batch = batch_of(model.schedule, pictures())
    assert float(losses.noise_loss()(model, batch, torch.float32)) == pytest.approx(float(batch.eps.square().mean()))


@pytest.mark.parametrize(("name", "of_data"), [("min-snr", lambda snr: min(snr, 5)), ("edm", lambda snr: snr + 4)])
def test_weights_are_those_of_the_error_of_the_data(name, of_data):
    """(m - x_0)^2 = (eps - e1)^2/SNR gives the weights of the error of x_0.

    They are min(SNR, 5) by Hang et al., and (r^2 + s^2)/(r s)^2 = SNR + 4 by EDM with s = 0.5.
    """
    for alpha, sigma in ((0.99, 0.02), (0.8, 0.6), (0.3, 0.95), (0.006, 1.0)):
        snr, pair = (alpha / sigma) ** 2, (torch.tensor(v, dtype=torch.float64) for v in (alpha, sigma))
        assert float(losses.WEIGHTS[name](*pair)) == pytest.approx(of_data(snr) / snr)


def test_noise_loss_has_its_weights():
    model = MomentUNet(**{**TINY, "image_size": 4}, attention_resolutions=(), head=None)
    batch = batch_of(model.schedule, pictures())
    weight = losses.min_snr(batch.alpha, batch.sigma)
    assert 0 < weight.min() < 0.1 < 1 == weight.max()
    found = losses.noise_loss("min-snr")(model, batch, torch.float32)
    assert float(found) == pytest.approx(float((weight * batch.eps.square()).mean()))


# --- the network ---


def unet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MomentUNet(**{**TINY, "image_size": 4}, attention_resolutions=(), head="simple", dropout=0.5)


def frozen(model):
    """All weights and buffers except the heads, whether they take gradients or not."""
    free = model.head_parameters()
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if name not in free}


@pytest.mark.parametrize("make", [heads, unet])
@pytest.mark.parametrize("fails", [False, True])
def test_network_is_the_same_to_the_bit_and_its_flags_are_as_before(tmp_path, monkeypatch, make, fails):
    model = make()
    for number, weight in enumerate(frozen(model).values()):
        weight.requires_grad_(number % 2 == 0)
    before = {name: value.detach().clone() for name, value in frozen(model).items()}
    flags, learn = {name: v.requires_grad for name, v in frozen(model).items()}, []
    loss = losses.moment_loss(model.moments)

    def watched(*args):
        learn.append({v.requires_grad for v in frozen(model).values()})
        if fails and len(learn) == 3:
            raise MemoryError
        return loss(*args)

    monkeypatch.setattr(loop, "moment_loss", lambda _: watched)
    try:
        train_moment_heads(model, pictures(), steps=4, out=tmp_path, precision="bfloat16", **QUIET)
        assert not fails
    except MemoryError:
        assert fails
    assert learn == [{False}] * (3 if fails else 4)
    assert {name: v.requires_grad for name, v in frozen(model).items()} == flags
    assert [name for name, value in frozen(model).items() if not torch.equal(value, before[name])] == []
    assert all(weight.grad is None for weight in frozen(model).values())


def test_noise_network_leaves_flags_of_heads_as_they_were(tmp_path):
    model = unet()
    model.out2.requires_grad_(False)
    train_noise_network(model, pictures(), steps=1, out=tmp_path, **QUIET)
    assert {n.partition(".")[0] for n, p in model.named_parameters() if not p.requires_grad} == {"out2"}


@pytest.mark.parametrize("make", [heads, unet])
def test_dropout_of_the_network_stays_off(tmp_path, make):
    model, modes = make(), set()
    parts = [part for part in model.modules() if isinstance(part, torch.nn.Dropout)]
    for part in parts:
        part.register_forward_hook(lambda part, given, output: modes.add(part.training))
    train_moment_heads(model.train(), pictures(), steps=2, out=tmp_path, **QUIET)
    assert modes == {False}
    assert not any(part.training for part in parts)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_network_computes_in_the_precision_and_heads_in_float32(tmp_path, precision):
    network = Small()
    model = heads(network)
    before, seen = {n: w.clone() for n, w in model.heads.named_parameters()}, set()
    model.heads.register_forward_pre_hook(lambda _, given: seen.update(tensor.dtype for tensor in given))
    network.seen.clear()
    train_moment_heads(model, pictures(), steps=3, out=tmp_path, precision=precision, lr=1e-2, **QUIET)
    assert set(network.seen) == {getattr(torch, precision)}
    assert seen == {torch.float32}
    after = dict(model.heads.named_parameters())
    assert all(w.dtype == torch.float32 and w.isfinite().all() for w in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_heads_are_trained_on_a_network_of_a_narrow_dtype(tmp_path, dtype):
    model = heads(Small().to(dtype))
    train_moment_heads(model, pictures(), steps=2, out=tmp_path, **QUIET)
    assert {w.dtype for w in model.heads.parameters()} == {torch.float32}


def test_heads_are_trained_on_activations_whose_channels_lie_last(tmp_path):
    """In this layout torch 2.13 kills the process in the gradient of a GroupNorm."""
    plain = train_moment_heads(heads(), pictures(), steps=2, out=tmp_path / "plain", **QUIET)
    network = Small().to(memory_format=torch.channels_last)
    last = train_moment_heads(heads(network), pictures(), steps=2, out=tmp_path / "last", **QUIET)
    for weight, wanted in zip(last.heads.parameters(), plain.heads.parameters(), strict=True):
        assert weight.shape == wanted.shape
        assert weight.isfinite().all()


def test_loss_of_a_precision_is_near_that_of_float32():
    model = constant(heads(), 0.8, 0.1)
    batch = batch_of(model.schedule, pictures())
    plain, narrow = (float(losses.moment_loss("central")(model, batch, d)) for d in (torch.float32, torch.bfloat16))
    assert narrow == pytest.approx(plain, rel=0.03)
    assert narrow != plain


def test_noise_network_is_not_trained_in_float16(tmp_path):
    with pytest.raises(ValueError, match='"float32" or "bfloat16" for weights that learn: got "float16"'):
        train_noise_network(unet(), pictures(), steps=1, out=tmp_path, precision="float16", **QUIET)


def test_networks_that_write_to_their_input_teach_what_others_do(tmp_path):
    class Writing(Convolutional):
        def forward(self, x, t):
            return super().forward(x.mul_(0.5), t)

    class Halving(Convolutional):
        def forward(self, x, t):
            return super().forward(0.5 * x, t)

    found = []
    for kind in (Writing, Halving):
        torch.manual_seed(0)
        network = kind().eval()
        torch.manual_seed(0)
        model = MomentHeads(network, "last", **OF_PICTURES)
        train_moment_heads(model, torch.zeros(4, 1, 8, 8), steps=3, out=tmp_path / kind.__name__, progress=False)
        found.append(model.record["loss"])
    assert found[0] == found[1]


def test_narrow_heads_and_flips_of_no_pictures_are_refused(tmp_path):
    torch.manual_seed(0)
    model = MomentHeads(Convolutional().eval(), "last", **OF_PICTURES).bfloat16()
    with pytest.raises(ValueError, match=r"model must have float32 or float64 weights .*: got torch\.bfloat16"):
        train_moment_heads(model, torch.zeros(4, 1, 8, 8), steps=1, out=tmp_path)
    model.float().requires_grad_(False)
    with torch.no_grad():
        train_moment_heads(model, torch.zeros(4, 1, 8, 8), steps=1, out=tmp_path, progress=False)
    assert not any(weight.requires_grad for weight in model.parameters())
