"""Guided models against the formulas they wrap."""

import pytest
import torch

import gms_fast
from gms_fast import NoiseMoments
from gms_fast.guidance import Classifier, ClassifierFree
from gms_fast.models import GaussianMixture1D
from gms_fast.schedules import EDM, VPLinear

X, T = torch.linspace(-2, 2, 12, dtype=torch.float64).view(4, 3), torch.full((4,), 300.0, dtype=torch.float64)


class Conditional:
    """A network whose output shows what it was called with."""

    schedule, sample_shape, prediction = VPLinear(), (3,), "v"

    def __init__(self):
        self.sizes = []

    def __call__(self, x, t, condition):
        self.sizes.append(len(x))
        return x * 0.5 + t[:, None] / 1000 + condition


def test_classifier_free_is_one_call_of_twice_the_size():
    network = Conditional()
    condition = torch.arange(4.0, dtype=torch.float64)[:, None]
    guided = ClassifierFree(network, condition, torch.zeros(1, 1, dtype=torch.float64), scale=3.0)
    without, given = network(X, T, torch.zeros(4, 1)), network(X, T, condition)
    torch.testing.assert_close(guided(X, T), without + 3 * (given - without), rtol=0, atol=1e-14)
    assert network.sizes == [4, 4, 8]
    assert (guided.schedule, guided.sample_shape, guided.prediction) == (network.schedule, (3,), "v")


def test_no_guidance_costs_one_call():
    network = Conditional()
    condition = torch.ones(1, 1, dtype=torch.float64)
    for guided in (
        ClassifierFree(network, condition, scale=7.0),
        ClassifierFree(network, condition, condition, scale=1),
    ):
        torch.testing.assert_close(guided(X, T), network(X, T, condition.expand(4, 1)), rtol=0, atol=0)
    assert network.sizes == [4, 4, 4, 4]


@pytest.mark.parametrize("schedule", [VPLinear(), EDM()], ids=repr)
def test_classifier_guides_to_the_posterior(schedule):
    """Prior N(0, 1), p(c|x_0) a Gaussian in x_0: the guided noise is that of the product, another Gaussian.

    log p(c|x_t) of c = x_0 + N(0, s^2) noise observed at y: x_0|x_t is N(m, v), so log N(y; m, v + s^2).
    """
    s, y = 0.5, 0.8
    t = torch.full((4,), 3.0 if isinstance(schedule, EDM) else 300.0, dtype=torch.float64)
    model = GaussianMixture1D([1.0], [0.0], [1.0], schedule=schedule, sample_shape=(3,))
    alpha, sigma = (float(f(schedule.from_network_time(t[0]))) for f in (schedule.alpha, schedule.sigma))

    def log_prob(x, times):
        assert torch.equal(times, t)
        m, v = alpha * x / (alpha**2 + sigma**2), sigma**2 / (alpha**2 + sigma**2)
        return (-((y - m) ** 2) / (2 * (v + s**2))).sum(1)

    mean, std = y / (1 + s**2), s / (1 + s**2) ** 0.5  # of x_0 given c
    want = sigma * (X - alpha * mean) / ((alpha * std) ** 2 + sigma**2)
    with torch.no_grad():
        torch.testing.assert_close(Classifier(model, log_prob)(X, t), want, rtol=0, atol=1e-12)
        twice = Classifier(model, log_prob, scale=2.0)(X, t)
    e1 = model(X, t).e1
    torch.testing.assert_close(twice, e1 + 2 * (want - e1), rtol=0, atol=1e-12)


def test_classifier_reads_every_form_of_prediction():
    model = GaussianMixture1D([1.0], [0.0], [1.0], sample_shape=(3,))
    data = lambda x, t: model.data_moments(x, t, 1)[0]  # noqa: E731
    log_prob = lambda x, t: -(x**2).sum(1)  # noqa: E731
    guided = Classifier(data, log_prob, schedule=VPLinear(), prediction="x0")
    torch.testing.assert_close(guided(X, T), Classifier(model, log_prob)(X, T), rtol=0, atol=1e-12)
    assert guided.prediction == "noise"


def test_guided_models_are_sampled():
    model = GaussianMixture1D([0.5, 0.5], [-0.6, 0.6], [0.1, 0.1], sample_shape=(1,))
    guided = Classifier(model, lambda x, t: torch.nn.functional.logsigmoid(20 * x[:, 0]), scale=1.0)
    x = gms_fast.sample(guided, 20, solver="dpm-solver++", n=64)
    assert float((x > 0).double().mean()) > 0.95
    assert not x.requires_grad


def test_guided_networks_keep_their_dtype_and_moments_are_led_by_the_first():
    class Net(torch.nn.Linear):
        schedule, sample_shape, moments = VPLinear(), (3,), "central"

        def forward(self, x, t, condition=None):
            e1 = super().forward(x) + (0 if condition is None else condition)
            return NoiseMoments(e1, e1 * 0 + 1, e1)

    net = Net(3, 3).bfloat16().requires_grad_(False)
    condition = torch.ones(1, 3, dtype=torch.bfloat16)
    for guided in (ClassifierFree(net, condition, 0 * condition, scale=2.0), Classifier(net, lambda x, t: x.sum(1))):
        x = gms_fast.sample(guided, 3, solver="ddim", n=2)
        assert x.dtype == torch.float32
        assert x.isfinite().all()
        assert gms_fast.sample(guided, 3, solver="ddim", n=0).shape == (0, 3)
        with pytest.raises(ValueError, match="model must return NoiseMoments with 3 moments"):
            gms_fast.sample(guided, 3, solver="gms", n=2)
    assert torch.equal(ClassifierFree(net, condition)(X.bfloat16(), T), net(X.bfloat16(), T, condition).e1)


REFUSALS = {
    "model": (lambda: ClassifierFree(None, X), TypeError, "model must be callable: got NoneType"),
    "condition": (
        lambda: ClassifierFree(Conditional(), X[:2])(X, T), ValueError,
        r"condition must be a tensor of 1 or 4 rows: got \(2, 3\)",
    ),
    "unconditional": (
        lambda: ClassifierFree(Conditional(), X, 0.0, scale=2)(X, T), ValueError,
        "unconditional must be a tensor of 1 or 4 rows: got float",
    ),
    "schedule": (lambda: Classifier(lambda x, t: x, lambda x, t: x), ValueError, "schedule must be given"),
    "log_prob": (lambda: Classifier(Conditional(), 3), TypeError, "log_prob must be callable .*: got int"),
    "log_prob's shape": (
        lambda: Classifier(lambda x, t: x, lambda x, t: x, schedule=VPLinear())(X, T), ValueError,
        r"log_prob must return \(4,\): got \(4, 3\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_argument_is_named(case):
    build, error, message = REFUSALS[case]
    with pytest.raises(error, match=message):
        build()
