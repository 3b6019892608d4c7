"""Guided models against the formulas that they implement."""

import pytest
import torch

import gms_fast
from gms_fast import NoiseMoments
from gms_fast.guidance import Classifier, ClassifierFree
from gms_fast.models import GaussianMixture1D
from gms_fast.schedules import EDM, VPLinear

X, T = torch.linspace(-2, 2, 12, dtype=torch.float64).view(4, 3), torch.full((4,), 300.0, dtype=torch.float64)


class Conditional:
    """Network whose output shows the arguments of its call."""

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
    for guided in (ClassifierFree(network, condition), ClassifierFree(network, condition, 0 * condition, scale=1)):
        torch.testing.assert_close(guided(X, T), network(X, T, condition.expand(4, 1)), rtol=0, atol=0)
    assert network.sizes == [4, 4, 4, 4]


class Keywords:
    """Network with keyword conditions: a prompt of any length, an image, a number, a word."""

    schedule, sample_shape = VPLinear(), (3,)

    def __init__(self):
        self.sizes = []

    def __call__(self, x, t, *, prompt, picture, strength=1.0, mode="on"):
        self.sizes.append(len(x))
        said = 0 if prompt is None else prompt.sum(1, keepdim=True)
        return x * 0.5 + strength * said + picture + (mode == "on")


GIVEN = {
    "prompt": torch.arange(8.0, dtype=torch.float64).view(4, 2),
    "picture": torch.arange(12.0, dtype=torch.float64).view(4, 3),
    "strength": 0.5,
    "mode": "on",
}
NONE = {**GIVEN, "prompt": torch.ones(1, 2, dtype=torch.float64), "picture": torch.ones(1, 3, dtype=torch.float64)}


@pytest.mark.parametrize(
    ("change", "sizes"),
    [
        ({}, [8]),
        ({"prompt": torch.ones(1, 3, dtype=torch.float64)}, [4, 4]),
        ({"prompt": None}, [4, 4]),
        ({"strength": 0.25}, [4, 4]),
        ({"mode": "off"}, [4, 4]),
    ],
    ids=str,
)
def test_keywords_cost_one_call_where_tensors_of_one_shape_are_all_that_differs(change, sizes):
    network, without = Keywords(), {**NONE, **change}
    guided = ClassifierFree(network, GIVEN, without, scale=3.0)(X, T)
    assert network.sizes == sizes
    y_u, y_c = (network(X, T, **condition) for condition in (without, GIVEN))
    torch.testing.assert_close(guided, y_u + 3 * (y_c - y_u), rtol=0, atol=1e-13)


def test_keywords_may_lie_in_dicts():
    """Large latent models take such dicts beside the time embedding."""
    calls = []

    def network(x, t, *, prompt, added):
        calls.append(len(x))
        return x + prompt + added["size"].sum(1, keepdim=True) + (added["style"] or 0)

    def words(value, size, style=None):
        row = torch.full((1, 1), value, dtype=torch.float64)
        return {"prompt": row, "added": {"size": row.expand(1, size), "style": style}}

    for none, added, sizes in ((words(1, 2), 3, [8]), (words(1, 3), 4, [4, 4]), (words(1, 2, 5), 8, [4, 4])):
        calls.clear()
        guided = ClassifierFree(network, unconditional=none, scale=2.0)(X, T, **words(4, 2))
        torch.testing.assert_close(guided, X + 2 * 12 - added, rtol=0, atol=1e-13)
        assert calls == sizes


def test_keywords_that_are_none_in_both_go_through():
    network, (given, none) = Keywords(), ({**condition, "prompt": None} for condition in (GIVEN, NONE))
    ClassifierFree(network, given, none, scale=3.0)(X, T)
    assert network.sizes == [8]


def test_prompts_of_unequal_length_are_two_calls():
    network = lambda x, t, prompt: x + prompt.sum(1, keepdim=True)  # noqa: E731
    long, short = torch.ones(4, 5, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    guided = ClassifierFree(network, long, short, scale=3.0)
    torch.testing.assert_close(guided(X, T), X + 2 + 3 * (5 - 2), rtol=0, atol=1e-13)


def test_conditions_may_come_with_the_call():
    """Each part of a batch then gets its rows of the condition."""
    held = ClassifierFree(Keywords(), GIVEN, NONE, scale=3.0)(X, T)
    called = ClassifierFree(Keywords(), unconditional=NONE, scale=3.0)
    assert torch.equal(called(X, T, **GIVEN), held)
    part = {name: value[1:3] if isinstance(value, torch.Tensor) else value for name, value in GIVEN.items()}
    assert torch.equal(called(X[1:3], T[1:3], **part), held[1:3])
    assert torch.equal(ClassifierFree(Keywords())(X, T, **GIVEN), Keywords()(X, T, **GIVEN))


# --- moments ---

MOMENTS = 1e-9  # raw moments are sums of terms (x/sigma)^3 < 1e3, each with a float64 error of 1e-12


def central(moments):
    e1, e2, e3 = moments
    return e2 - e1**2, e3 - 3 * e1 * e2 + 2 * e1**3


class Gaussians:
    """Exact raw moments of N(mean, 0.3^2); the mean (B, 1) is the condition, or one for all."""

    schedule, sample_shape, moments = VPLinear(), (3,), "raw"

    def of(self, mean):
        return GaussianMixture1D([1.0], [mean], [0.3], schedule=self.schedule, sample_shape=(3,))

    def __call__(self, x, t, mean):
        rows = [self.of(float(m))(x[i : i + 1], t[i : i + 1]) for i, m in enumerate(mean)]
        return NoiseMoments(*map(torch.cat, zip(*rows, strict=True)))


def test_guided_moments_are_exact_where_guidance_shifts_the_posterior():
    """p_u^(1-w) p_c^w of two Gaussians of one variance is a Gaussian with the guided moments."""
    without, given = (torch.full((1, 1), mean, dtype=torch.float64) for mean in (-0.1, 0.2))
    guided, want = ClassifierFree(Gaussians(), given, without, scale=2.0), Gaussians().of(0.5)
    assert guided.moments == "raw"
    torch.testing.assert_close(guided(X, T), want(X, T), rtol=0, atol=MOMENTS)
    shifted = Gaussians().of(0.2)(X, T)
    assert (shifted.e2 - want(X, T).e2).abs().max() > 0.1
    # sigma/alpha is 157 at first. Its square multiplies the rounding of the second moment, 1e-15. GMS takes the cube
    # root of the third, which is 0 but for rounding: (13.5 1e-15)^(1/3) 157.
    for solver, atol in (("sn-ddpm", 1e-10), ("gms", 4e-3)):
        options = {"solver": solver, "n": 8, "dtype": torch.float64}
        x, y = (gms_fast.sample(model, 4, **options) for model in (guided, want))
        torch.testing.assert_close(x, y, rtol=0, atol=atol)


def test_classifier_that_shifts_the_posterior_gives_its_exact_moments():
    """For p(c|x_0) = exp(a x_0) and Gaussian data the posterior shifts without changing shape.

    log E[p(c|x_0)|x_t] is a m + a^2 v/2, and the mean of x_0 given c is larger by a std^2.
    """
    a, std, model = 3.0, 0.3, Gaussians().of(0.0)
    alpha, sigma = (float(f(300.0)) for f in (model.schedule.alpha, model.schedule.sigma))
    guided = Classifier(model, lambda x, t: (a * alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x).sum(1))
    assert guided.moments == "raw"
    torch.testing.assert_close(guided(X, T), Gaussians().of(a * std**2)(X, T), rtol=0, atol=MOMENTS)


@pytest.mark.parametrize("moments", ["raw", "central"])
def test_guided_models_keep_moments_about_the_mean(moments):
    class Net:
        schedule, sample_shape = VPLinear(), (3,)

        def __call__(self, x, t, condition=None):
            e1 = x.tanh() + (0 if condition is None else condition)
            r2, r3 = 0.5 + 0.1 * e1**2, 0.2 * e1
            raw = (e1**2 + r2, e1**3 + 3 * e1 * r2 + r3)
            return NoiseMoments(e1, *(raw if moments == "raw" else (r2, r3)))

    net, ones = Net(), torch.ones(1, 3, dtype=torch.float64)
    net.moments = moments
    about = central if moments == "raw" else lambda m: m[1:]
    slope = float(net.schedule.sigma(300.0)) * 0.7
    for guided, own, e1 in (
        (ClassifierFree(net, ones, 0 * ones, scale=3.0), net(X, T, ones), X.tanh() + 3),
        (Classifier(net, lambda x, t: 0.7 * x.sum(1)), net(X, T), X.tanh() - slope),
    ):
        assert guided.moments == moments
        got = guided(X, T)
        torch.testing.assert_close(got.e1, e1, rtol=0, atol=1e-12)
        torch.testing.assert_close(about(got), about(own), rtol=0, atol=MOMENTS)


@pytest.mark.parametrize("moments", ["raw", "central"])
def test_guided_moments_are_as_many_as_the_network_has(moments):
    ones = torch.ones(1, 3, dtype=torch.float64)
    alone = lambda x, t, c: NoiseMoments(x + c)  # noqa: E731
    second = lambda x, t, c: NoiseMoments(x + c, x**2 + 1)  # noqa: E731
    for net, number in ((alone, 1), (second, 2)):
        net.moments = moments
        got = ClassifierFree(net, ones, 0 * ones, scale=2.0)(X, T)
        assert [e is None for e in got] == [k >= number for k in range(3)]


def test_what_a_model_says_of_itself_is_handed_on():
    for said in (
        {},
        {"clip": None},
        {"self_condition": True},
        {"clip": (0.0, 1.0), "moments": "central", "sample_shape": (3,), "prediction": "x0"},
    ):
        model = lambda x, t, c=None: x  # noqa: E731
        vars(model).update(schedule=VPLinear(), **said)
        for guided in (ClassifierFree(model, X), Classifier(model, lambda x, t: x.sum(1))):
            assert guided.moments == said.get("moments", "raw")
            assert guided.schedule is model.schedule
            assert guided.sample_shape == said.get("sample_shape")
            assert hasattr(guided, "clip") == ("clip" in said)
            assert getattr(guided, "clip", None) == said.get("clip")
            assert guided.self_condition == said.get("self_condition")
        assert ClassifierFree(model, X).prediction == said.get("prediction", "noise")


def test_what_a_model_says_is_found_behind_wrappers():
    net = torch.nn.Linear(3, 3)
    net.schedule, net.moments, net.clip = VPLinear(T=500, rescale_time=True), "central", None
    guided = ClassifierFree(torch.nn.DataParallel(net), X)
    assert (guided.schedule, guided.moments, guided.clip) == (net.schedule, "central", None)
    other = ClassifierFree(net, X, schedule=VPLinear(T=100)).schedule  # with network times of the model's own
    assert (other.T, float(other.network_time(99))) == (100, 990)


def test_parts_of_a_batch_get_their_part_of_the_condition():
    network, none = Keywords(), {"prompt": None, "picture": torch.zeros(1, 3)}
    given = {"prompt": torch.arange(10.0).view(5, 2), "picture": torch.rand(5, 3)}
    options = {"solver": "ddim", "n": 5, "condition": given, "clip": None}
    guided = ClassifierFree(network, unconditional=none, scale=2.0, prediction="x0")
    whole, parts = (gms_fast.sample(guided, 3, batch_size=size, **options) for size in (None, 2))
    assert set(network.sizes) == {5, 2, 1}
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", [VPLinear(), EDM()], ids=repr)
def test_classifier_guides_to_the_posterior(schedule):
    """For prior N(0, 1) and Gaussian p(c|x_0), guidance gives the product Gaussian's noise.

    c = x_0 + N(0, s^2) noise is observed at y: x_0|x_t is N(m, v), so log p(c|x_t) = log N(y; m, v + s^2).
    """
    s, y = 0.5, 0.8
    t = torch.full((4,), 3.0 if isinstance(schedule, EDM) else 300.0, dtype=torch.float64)
    model = GaussianMixture1D([1.0], [0.0], [1.0], schedule=schedule, sample_shape=(3,))
    alpha, sigma = (float(f(schedule.from_network_time(t[0]))) for f in (schedule.alpha, schedule.sigma))

    def log_prob(x, times):
        assert torch.equal(times, t)
        m, v = alpha * x / (alpha**2 + sigma**2), sigma**2 / (alpha**2 + sigma**2)
        return (-((y - m) ** 2) / (2 * (v + s**2))).sum(1)

    mean, std = y / (1 + s**2), s / (1 + s**2) ** 0.5  # mean and standard deviation of x_0 given c
    want = sigma * (X - alpha * mean) / ((alpha * std) ** 2 + sigma**2)
    with torch.no_grad():
        torch.testing.assert_close(Classifier(model, log_prob)(X, t).e1, want, rtol=0, atol=1e-12)
        twice = Classifier(model, log_prob, scale=2.0)(X, t).e1
    e1 = model(X, t).e1
    torch.testing.assert_close(twice, e1 + 2 * (want - e1), rtol=0, atol=1e-12)


def test_classifier_reads_every_form_of_prediction():
    model = GaussianMixture1D([1.0], [0.0], [1.0], sample_shape=(3,))
    data = lambda x, t: model.data_moments(x, t, 1)[0]  # noqa: E731
    log_prob = lambda x, t: -(x**2).sum(1)  # noqa: E731
    guided = Classifier(data, log_prob, schedule=VPLinear(), prediction="x0")
    torch.testing.assert_close(guided(X, T), Classifier(model, log_prob)(X, T).e1, rtol=0, atol=1e-12)
    assert guided.prediction == "noise"


def test_guided_models_are_sampled():
    model = GaussianMixture1D([0.5, 0.5], [-0.6, 0.6], [0.1, 0.1], sample_shape=(1,))
    guided = Classifier(model, lambda x, t: torch.nn.functional.logsigmoid(20 * x[:, 0]), scale=1.0)
    x = gms_fast.sample(guided, 20, solver="dpm-solver++", n=64, clip=(-1, 1))
    assert float((x > 0).double().mean()) > 0.95
    assert not x.requires_grad


def test_guided_networks_keep_their_dtype():
    class Net(torch.nn.Linear):
        schedule, sample_shape, moments = VPLinear(), (3,), "central"

        def forward(self, x, t, condition=None):
            e1 = super().forward(x) + (0 if condition is None else condition)
            return NoiseMoments(e1, e1 * 0 + 1, e1)

    net = Net(3, 3).bfloat16().requires_grad_(False)
    condition = torch.ones(1, 3, dtype=torch.bfloat16)
    for guided in (ClassifierFree(net, condition, 0 * condition, scale=2.0), Classifier(net, lambda x, t: x.sum(1))):
        for solver in ("ddim", "gms"):
            x = gms_fast.sample(guided, 3, solver=solver, n=2, clip=(-1, 1))
            assert x.dtype == torch.float32
            assert x.isfinite().all()
            assert gms_fast.sample(guided, 3, solver=solver, n=0).shape == (0, 3)
        assert {e.dtype for e in guided(X.bfloat16(), T)} == {torch.bfloat16}


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
    "no unconditional": (
        lambda: ClassifierFree(Conditional(), X, scale=2), ValueError,
        "unconditional must be given where scale is not 1: got None and scale = 2",
    ),
    "no condition": (
        lambda: ClassifierFree(Conditional(), None, X, scale=2)(X, T), ValueError,
        "condition must be given, to ClassifierFree or with the call",
    ),
    "two conditions": (
        lambda: ClassifierFree(Keywords(), GIVEN)(X, T, picture=X), ValueError,
        "condition must be given once: ClassifierFree holds one, and the call gave picture",
    ),
    "keywords and a tensor": (
        lambda: ClassifierFree(Keywords(), GIVEN, X, scale=2), ValueError,
        "unconditional must be keywords like condition: got a tensor",
    ),
    "a tensor and keywords of a call": (
        lambda: ClassifierFree(Keywords(), None, X, scale=2)(X, T, **GIVEN), ValueError,
        "unconditional must be keywords like condition: got a tensor",
    ),
    "a missing keyword": (
        lambda: ClassifierFree(Keywords(), GIVEN, {"picture": X}, scale=2), ValueError,
        "unconditional must have the keywords of condition: missing mode, prompt, strength",
    ),
    "another keyword": (
        lambda: ClassifierFree(Keywords(), unconditional={"picture": X, "size": 3}, scale=2)(X, T, picture=X),
        ValueError,
        "condition must have the keywords of unconditional: missing size",
    ),
    "a keyword in a dict": (
        lambda: ClassifierFree(Keywords(), {"a": {"b": X}}, {"a": {"c": X}}, scale=2), ValueError,
        r"unconditional\['a'\] must have the keywords of condition\['a'\]: missing b",
    ),
    "rows of a keyword": (
        lambda: ClassifierFree(Keywords())(X, T, picture=X[:2]), ValueError,
        r"condition\['picture'\] must be a tensor of 1 or 4 rows: got \(2, 3\)",
    ),
    "kind of a keyword": (
        lambda: ClassifierFree(Keywords())(X, T, picture=[1.0] * 4), ValueError,
        r"condition\['picture'\] must be a tensor of 1 or 4 rows: got list",
    ),
    "output": (
        lambda: ClassifierFree(lambda x, t, c: {"sample": x}, X, X, scale=2)(X, T), TypeError,
        r"model must return a tensor or NoiseMoments\(e1, e2, e3\): got dict",
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
