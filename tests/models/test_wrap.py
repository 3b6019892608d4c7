"""Networks of other libraries as models: what is found out, what is converted, and what is refused."""

import functools
import itertools
import types

import pytest
import torch

import gms_fast
from gms_fast import NoiseMoments
from gms_fast.models import wrap
from gms_fast.models.learned_variance import LearnedVariance
from gms_fast.schedules import EDM, VP, VPCosine, VPLinear
from gms_fast.solvers import DDPM, SNDDPM

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def down(T):
    return list(range(T - 1, -1, -1))


class UNetModel(torch.nn.Module):
    """The attributes and the call of guided-diffusion's U-Net; outputs of 2C channels, the second half in (-1, 1)."""

    def __init__(self, channels=3, num_classes=None, learned=True):
        super().__init__()
        self.image_size, self.in_channels, self.model_channels, self.num_classes = 4, channels, 8, num_classes
        self.input_blocks = self.middle_block = self.output_blocks = torch.nn.Identity()
        self.dtype = torch.float32  # of its torso, whatever the rest is
        self.out = torch.nn.Conv2d(channels, channels * (1 + learned), 3, padding=1)
        self.times = []

    def forward(self, x, timesteps, y=None):
        assert (y is not None) == (self.num_classes is not None)
        self.times.append(float(timesteps[0]))
        shift = torch.cos(timesteps / 7).reshape(-1, 1, 1, 1)
        h = self.out(x + shift if y is None else x + shift + 0.3 * y.reshape(-1, 1, 1, 1))
        return torch.cat([h[:, : self.in_channels], h[:, self.in_channels :].tanh()], 1)


def made(kind, *arguments, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(*arguments, **options).double().eval()


def of_improved_ddpm(network, betas, x, z, form, times=lambda t: t, **conditions):
    """Ancestral sampling with the learned variance: eqs. 10, 11 and 15 of Nichol & Dhariwal 2021."""
    total = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=betas.dtype), total[:-1]])
    posterior = betas * (1 - before) / (1 - total)
    lowest = torch.cat([posterior[1:2], posterior[1:]]).log()
    for i, t in enumerate(down(len(betas))):
        y, v = network(x, torch.full((len(x),), float(times(t)), dtype=x.dtype), **conditions).chunk(2, 1)
        x_0 = y if form == "x0" else (x - (1 - total[t]).sqrt() * y) / total[t].sqrt()
        x_0 = x_0.clamp(-1, 1)
        mean = before[t].sqrt() * betas[t] * x_0 + (1 - betas[t]).sqrt() * (1 - before[t]) * x
        f = (v + 1) / 2
        std = (0.5 * (f * betas[t].log() + (1 - f) * lowest[t])).exp()
        x = mean / (1 - total[t]) + (std * z[i] if t else 0)
    return x


@pytest.mark.parametrize("form", ["noise", "x0"])
@pytest.mark.parametrize("classes", [None, 5])
@pytest.mark.parametrize("schedule", [VPLinear(100, 0.001, 0.2), VPCosine(40)], ids=repr)
def test_learned_variance_samples_as_improved_ddpm(form, classes, schedule):
    network = made(UNetModel, num_classes=classes)
    labels = {} if classes is None else {"y": torch.tensor([1, 4])}
    x_T, z = normal(2, 3, 4, 4), normal(schedule.T, 2, 3, 4, 4, seed=1)
    with torch.no_grad():
        want = of_improved_ddpm(network, schedule.betas, x_T, z, form, **labels)
    model = wrap(network, schedule=schedule, prediction=form, **labels)
    same = {"timesteps": down(schedule.T), "x_T": x_T, "noise": lambda i: z[i]}
    got = gms_fast.sample(model, solver=SNDDPM(clip_pixel=None), **same)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)  # e2 is float32, and adds up over the steps
    plain = gms_fast.sample(model, solver=DDPM(clip_pixel=None), **same)
    assert float((plain - want).abs().max()) > 1e-3  # the variance matters


def test_learned_variance_at_rescaled_times():
    schedule = VP(VPLinear(40, 0.002, 0.3).betas, rescale_time=True)
    network, x_T, z = made(UNetModel), normal(2, 3, 4, 4), normal(40, 2, 3, 4, 4, seed=1)
    with torch.no_grad():
        want = of_improved_ddpm(network, schedule.betas, x_T, z, "noise", times=lambda t: 25 * t)
    model = wrap(network, schedule=schedule)
    got = gms_fast.sample(model, solver=SNDDPM(clip_pixel=None), timesteps=down(40), x_T=x_T, noise=lambda i: z[i])
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


def test_ends_of_a_learned_variance():
    """v = -1 is a known x_0; v = 1 is what data N(0, 1) would have: E[eps^2] - E[eps]^2 = alpha^2."""
    schedule = VPLinear()
    learned, t = LearnedVariance(schedule), torch.arange(1000.0)
    none, all_of_it = (learned.second(torch.full((1000, 1), v), t)[:, 0].double() for v in (-1.0, 1.0))
    assert none[1:].abs().max() == 0
    torch.testing.assert_close(all_of_it, schedule.alpha(t) ** 2, rtol=1e-6, atol=0)
    c = schedule.betas[1] * (1 - schedule.alpha(0) ** 2) / (1 - schedule.alpha(1) ** 2)
    assert float(none[0]) == pytest.approx(float(schedule.alpha(0) ** 2 * c / schedule.betas[0]), rel=1e-6)


def test_a_learned_variance_keeps_the_law_of_x_0_on_coarser_grids():
    model = wrap(made(UNetModel), schedule=VPLinear())
    x, t = normal(2, 3, 4, 4), torch.full((2,), 500.0)
    _, e2, e3 = model(x, t)
    assert e3 is None
    assert model.moments == "central"
    alpha = float(VPLinear().alpha(500))
    assert bool(((e2 >= 0) & (e2 <= alpha**2)).all())
    assert gms_fast.sample(model, 5, solver="sn-ddpm", n=2).shape == (2, 3, 4, 4)


def test_guided_diffusion_says_what_it_is():
    model = wrap(made(UNetModel), schedule=VPLinear())
    assert (model.sample_shape, model.prediction) == ((3, 4, 4), "noise")
    assert not hasattr(model, "clip")  # assumed, and watched
    assert model.dtype == torch.float64  # of the weights that x meets, not of the torso
    assert wrap(made(UNetModel, 4), schedule=VPLinear()).clip is None  # latents
    one = wrap(made(UNetModel, learned=False), schedule=VPLinear())
    assert isinstance(one(normal(2, 3, 4, 4), torch.zeros(2)), torch.Tensor)


def test_weights_mode_and_device_are_those_of_the_network():
    network = made(UNetModel)
    model = wrap(network, schedule=VPLinear())
    assert [id(p) for p in model.parameters()] == [id(p) for p in network.parameters()]
    assert not model.training
    assert wrap(network.train(), schedule=VPLinear()).training
    bound = functools.partial(made(UNetModel, num_classes=3), y=torch.tensor([1, 2]))
    model = wrap(bound, schedule=VPLinear())  # its labels are known
    assert len(list(model.parameters())) == 2
    assert gms_fast.sample(model, 3, solver="ddim", n=2).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    "around", [torch.nn.DataParallel, torch.optim.swa_utils.AveragedModel, torch.compile, functools.partial]
)
def test_wrappers_are_looked_through(around):
    model = wrap(around(made(UNetModel)), schedule=VPLinear())
    assert (model.sample_shape, model.dtype) == ((3, 4, 4), torch.float64)


def test_copies_are_models_of_their_own():
    network = made(UNetModel)
    model = wrap(network, schedule=VPLinear())
    average = torch.optim.swa_utils.AveragedModel(model)
    x, t = normal(2, 3, 4, 4), torch.full((2,), 500.0)
    before = average(x, t)
    with torch.no_grad():
        network.out.weight.zero_()
    torch.testing.assert_close(average(x, t).e1, before.e1)
    assert float((model(x, t).e1 - before.e1).abs().max()) > 0.1


class Labelled(UNetModel):
    """Keeps what it is given."""

    def forward(self, x, timesteps, **conditions):
        self.given = conditions
        return super().forward(x, timesteps, None if self.num_classes is None else conditions["y"])


def test_conditions_of_all_samples_and_of_single_ones():
    network = made(Labelled, num_classes=5)
    model = wrap(network, schedule=VPLinear(), y=torch.tensor([3]), extra={"text": torch.ones(1, 2, 7), "scale": 2.0})
    gms_fast.sample(model, 2, solver="ddim", n=3)
    assert network.given["y"].tolist() == [3, 3, 3]
    assert network.given["extra"]["text"].shape == (3, 2, 7)
    assert network.given["extra"]["text"].dtype == torch.float64  # as the network
    assert network.given["extra"]["scale"] == 2.0
    labels = torch.arange(3)
    whole = gms_fast.sample(model, 2, solver="ddim", n=3, condition={"y": labels})
    assert network.given["y"].tolist() == [0, 1, 2]
    parts = gms_fast.sample(model, 2, solver="ddim", n=3, condition={"y": labels}, batch_size=1)
    torch.testing.assert_close(parts, whole)
    assert network.given["y"].tolist() == [2]


@pytest.mark.parametrize("name", ["y", "extra"])
def test_conditions_of_another_number_of_samples_are_refused(name):
    labels = torch.arange(2)
    given = {"y": torch.tensor([1]), **({"y": labels} if name == "y" else {"extra": {"text": labels}})}
    model = wrap(made(Labelled, num_classes=5), schedule=VPLinear(), **given)
    with pytest.raises(ValueError, match=r"(y|extra\['text'\]) must have 1 row or 3, .*: got \(2,\); .*`condition`"):
        gms_fast.sample(model, 2, solver="ddim", n=3)


def test_missing_labels_are_named_before_the_network_is_called():
    network = made(UNetModel, num_classes=5)
    with pytest.raises(ValueError, match=r"y must be given, as wrap\(network, y=\.\.\.\) or sample\(.*: UNetModel dep"):
        gms_fast.sample(wrap(network, schedule=VPLinear()), 2, solver="ddim", n=2)
    assert not network.times


class SuperResModel(UNetModel):
    def forward(self, x, timesteps, low_res=None, y=None):
        return super().forward(torch.cat([x, low_res], 1), timesteps, y)


def test_a_network_that_enlarges_needs_the_small_picture():
    network = made(SuperResModel, 6, learned=False)
    network.out = torch.nn.Conv2d(6, 6, 1).double()
    model = wrap(network, schedule=VPLinear())
    assert model.sample_shape == (3, 4, 4)
    with pytest.raises(ValueError, match="low_res must be given"):
        model(normal(1, 3, 4, 4), torch.zeros(1))
    assert model(normal(1, 3, 4, 4), torch.zeros(1), low_res=normal(1, 3, 4, 4)).e2 is not None


class DiT(torch.nn.Module):
    """The attributes and the call of the DiT repository's transformer."""

    def __init__(self):
        super().__init__()
        self.learn_sigma, self.in_channels = True, 4
        self.x_embedder = torch.nn.Conv2d(4, 8, 1)
        self.x_embedder.img_size = (4, 4)
        self.t_embedder = self.y_embedder = torch.nn.Identity()

    def forward(self, x, t, y):
        return self.x_embedder(x).tanh() + 0.1 * y.reshape(-1, 1, 1, 1)


def test_dit():
    network = made(DiT)
    with pytest.raises(ValueError, match="schedule must be given: DiT does not tell it"):
        wrap(network)
    model = wrap(network, schedule=VPLinear(), y=torch.tensor([2]))
    assert (model.sample_shape, model.prediction, model.clip) == ((4, 4, 4), "noise", None)
    assert model(normal(3, 4, 4, 4), torch.zeros(3)).e2.shape == (3, 4, 4, 4)
    with pytest.raises(ValueError, match="y must be given"):
        wrap(network, schedule=VPLinear())(normal(3, 4, 4, 4), torch.zeros(3))


class SiT(DiT):
    """The same parts, and time from noise to data."""


def test_relatives_that_only_look_like_a_kind_are_not_taken_for_it():
    with pytest.raises(ValueError, match=r"kind must be given, one of diffusers, edm, .*: a network of class SiT"):
        wrap(made(SiT), schedule=VPLinear())
    assert wrap(made(SiT), "dit", schedule=VPLinear(), y=torch.tensor([2])).sample_shape == (4, 4, 4)


class EDMPrecond(torch.nn.Module):
    """The attributes and the call of an EDM network, whose torso may be float16: D of data N(0.2, 0.5^2)."""

    def __init__(self, label_dim=0, channels=3, sigma_min=0.0, sigma_max=float("inf")):
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim, self.use_fp16 = 4, channels, label_dim, True
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.torso = torch.nn.Linear(1, 1, dtype=torch.float16)

    def forward(self, x, sigma, class_labels=None, force_fp32=False):
        assert x.dtype == torch.float32
        sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        shift = 0 if class_labels is None else class_labels.sum()
        return 0.2 + shift + (x - 0.2) * 0.25 / (0.25 + sigma**2)


def test_edm():
    model = wrap(EDMPrecond())
    assert (model.sample_shape, model.prediction) == ((3, 4, 4), "x0")
    assert not hasattr(model, "clip")  # assumed, and watched
    assert (repr(model.schedule), model.dtype) == (repr(EDM(0.002, 80.0)), torch.float32)
    x_T = 80 * normal(2, 3, 4, 4)
    got = gms_fast.sample(model, 40, solver="ddim", x_T=x_T, clip=None)
    x, levels = x_T, EDM(0.002, 80.0).timesteps(40)
    for sigma, following in itertools.pairwise(levels):  # Euler's steps of the paper's algorithm 1
        d = (x - EDMPrecond()(x.float(), torch.full((2,), sigma)).double()) / sigma
        x = x + (following - sigma) * d
    torch.testing.assert_close(got, x, rtol=0, atol=1e-5)  # D is float32, of x up to 250


def test_edm_within_what_the_network_knows():
    narrow = wrap(EDMPrecond(sigma_min=0.02, sigma_max=50.0)).schedule
    assert (narrow.t_min, narrow.t_max) == (0.02, 50.0)
    discrete = EDMPrecond(channels=4)
    discrete.u = torch.tensor([200.0, 60.0, 3.0, 0.1, 0.0])  # levels to which an improved DDPM network rounds
    model = wrap(discrete)
    assert model.clip is None
    assert model.schedule.sigma(model.schedule.times).tolist() == pytest.approx([60.0, 3.0, 0.1, 0.0])
    assert model.schedule.network_time(model.schedule.times).tolist() == pytest.approx([60.0, 3.0, 0.1, 0.0])


def test_edm_does_not_take_zeros_for_labels():
    with pytest.raises(ValueError, match="class_labels must be given"):
        gms_fast.sample(wrap(EDMPrecond(label_dim=4)), 2, solver="ddim", n=1)
    model = wrap(EDMPrecond(label_dim=4), class_labels=torch.eye(4)[:1])
    assert gms_fast.sample(model, 2, solver="ddim", n=2).shape == (2, 3, 4, 4)


class Unet(torch.nn.Module):
    """The attributes and the call of a network of denoising-diffusion-pytorch."""

    def __init__(self, self_condition=False, classes=False):
        super().__init__()
        self.channels, self.self_condition = 3, self_condition
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        if classes:
            self.classes_emb = torch.nn.Embedding(4, 1)

    def forward(self, x, time, classes=None, cond_drop_prob=0.5):
        y = self.conv(x) + torch.sin(time / 9).reshape(-1, 1, 1, 1)
        if classes is None:
            return y
        dropped = torch.rand(len(x)) < cond_drop_prob
        return y + self.classes_emb(classes).reshape(-1, 1, 1, 1) * ~dropped.reshape(-1, 1, 1, 1)


class GaussianDiffusion(torch.nn.Module):
    """The training of a network as denoising-diffusion-pytorch keeps it."""

    def __init__(self, model, objective, image_size=(4, 4)):
        super().__init__()
        self.model, self.objective, self.channels, self.image_size = model, objective, 3, image_size
        self.register_buffer("betas", torch.linspace(0.002, 0.3, 50))

    def sample(self, batch_size):
        raise AssertionError


@pytest.mark.parametrize(("objective", "form"), [("pred_noise", "noise"), ("pred_x0", "x0"), ("pred_v", "v")])
def test_denoising_diffusion(objective, form):
    model = wrap(made(GaussianDiffusion, made(Unet), objective))
    assert (model.sample_shape, model.prediction, model.clip, model.schedule.T) == ((3, 4, 4), form, (-1.0, 1.0), 50)
    assert model.schedule.network_time(49) == 49
    assert gms_fast.sample(model, 5, n=2, solver="ddim").shape == (2, 3, 4, 4)


def test_denoising_diffusion_alone_tells_neither_schedule_nor_prediction():
    with pytest.raises(ValueError, match="schedule must be given: Unet does not tell it"):
        wrap(made(Unet), "denoising-diffusion")
    with pytest.raises(ValueError, match="prediction must be given: Unet does not tell it"):
        wrap(made(Unet), "denoising-diffusion", schedule=VPLinear())


def test_self_conditioning_is_refused():
    network = made(Unet, self_condition=True)
    for whole in (network, made(GaussianDiffusion, network, "pred_v")):
        with pytest.raises(ValueError, match=r"not ask for its own last answer.*Unet\(self_condition=True"):
            wrap(whole, "denoising-diffusion", schedule=VPLinear(), prediction="v")


def test_no_class_is_dropped_at_random():
    diffusion = made(GaussianDiffusion, made(Unet, classes=True), "pred_v")
    with pytest.raises(ValueError, match="classes must be given"):
        wrap(diffusion)(normal(8, 3, 4, 4), torch.zeros(8))
    x, t, classes = normal(8, 3, 4, 4), torch.zeros(8), torch.arange(8) % 4
    got = wrap(diffusion)(x, t, classes=classes)
    torch.testing.assert_close(got, diffusion.model(x, t, classes, cond_drop_prob=0.0))


def test_other_diffusions_of_the_library_are_refused():
    class ElucidatedDiffusion(GaussianDiffusion):
        pass

    with pytest.raises(ValueError, match=r"or one of GaussianDiffusion, .*: got Elucidated"):
        wrap(made(ElucidatedDiffusion, made(Unet), "pred_v"), "denoising-diffusion")


class Cosine:
    def __call__(self, t):
        alpha = torch.cos(1.5 * t)
        return alpha, (1 - alpha**2 + 1e-6).sqrt()


class Denoiser(torch.nn.Module):
    """The attributes and the call of a denoiser of azula: exact for data N(0.2, 0.5^2), on any shape."""

    schedule = Cosine()

    def __init__(self, tells_variance):
        super().__init__()
        self.tells_variance = tells_variance

    def forward(self, x_t, t, **conditions):
        alpha, sigma = (v[:, None] for v in self.schedule(t))
        total = 0.25 * alpha**2 + sigma**2
        mean = 0.2 + 0.25 * alpha / total * (x_t - 0.2 * alpha)
        var = {"var": 0.25 * sigma**2 / total} if self.tells_variance else {}
        return types.SimpleNamespace(mean=mean, **var)


Denoiser.__module__ = "azula.denoise"


def test_azula():
    model = wrap(Denoiser(tells_variance=False))
    assert (model.sample_shape, model.prediction, model.clip) == (None, "x0", None)
    t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    torch.testing.assert_close(model.schedule.inverse_log_snr(model.schedule.log_snr(t)), t, rtol=0, atol=1e-9)
    samples = gms_fast.sample(model, 50, solver="ddim", n=4000, shape=(2,))
    assert float(samples.mean()) == pytest.approx(0.2, abs=4 * 0.5 / 8000**0.5 + 0.01)
    assert float(samples.std()) == pytest.approx(0.5, rel=0.05)


def test_azula_variance_is_a_moment_of_the_noise():
    """Var[x_0|x_t] + E[x_0|x_t]^2 over all x_t is E[x_0^2], whatever the way it is told."""
    model = wrap(Denoiser(tells_variance=True))
    x, t = normal(5, 2), torch.full((5,), 0.4, dtype=torch.float64)
    moments = model(x, t)
    assert isinstance(moments, NoiseMoments)
    assert model.moments == "central"
    alpha, sigma = (v[:, None] for v in Cosine()(t))
    posterior = Denoiser(tells_variance=True)(x, t)
    torch.testing.assert_close((x - sigma * moments.e1) / alpha, posterior.mean)
    torch.testing.assert_close((sigma / alpha) ** 2 * moments.e2, posterior.var.expand_as(x))
    samples = gms_fast.sample(model, 8, solver="sn-ddpm", n=4000, shape=(2,))
    assert float(samples.std()) == pytest.approx(0.5, rel=0.03)  # exact at any number of steps, but for the start


@pytest.mark.parametrize("moments", ["raw", "central"])
def test_a_network_may_give_moments_itself(moments):
    class Moments(UNetModel):
        def forward(self, x, timesteps, y=None):
            return 0.8 * x, 0.3 * x * x

    model = wrap(Moments(), schedule=VPLinear(), moments=moments)
    assert model.moments == moments
    x = normal(2, 3, 4, 4).float()
    assert model(x, torch.zeros(2)).e2.equal(0.3 * x * x)


def test_outputs_of_other_shapes_are_refused():
    class Wide(UNetModel):
        def forward(self, x, timesteps, y=None):
            return torch.cat([x, x, x], 1)

    with pytest.raises(
        ValueError, match=r"network must give as many channels as x, \(1, 3, 4, 4\): got \(1, 9, 4, 4\)"
    ):
        wrap(Wide(), schedule=VPLinear())(normal(1, 3, 4, 4), torch.zeros(1))
    with pytest.raises(ValueError, match=r'"learned-range", and schedule a VP, .*gives 6 channels for 3'):
        wrap(made(UNetModel), schedule=EDM())(normal(1, 3, 4, 4), torch.zeros(1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"network": 3}, TypeError, "network must be callable, a pipeline, or .*: got int"),
        ({"network": torch.nn.Linear(1, 1)}, ValueError, "kind must be given, one of diffusers, .* class Linear"),
        ({"kind": "keras"}, ValueError, "kind must be one of diffusers, .*, or None: got 'keras'"),
        (
            {"moments": "second"},
            ValueError,
            "moments must be one of raw, central, learned-range, or None: got 'second'",
        ),
        ({"prediction": "score"}, ValueError, "prediction must be one of noise, .*: got 'score'"),
        ({"schedule": "fast"}, ValueError, "schedule must be one of .*: got 'fast'"),
        ({"schedule": None}, ValueError, "schedule must be given: UNetModel does not tell it"),
    ],
)
def test_arguments_that_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        wrap(**{"network": made(UNetModel), "schedule": "linear", **arguments})
