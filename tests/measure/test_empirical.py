"""Measurement of empirical model statistics: invariances and errors."""

import math

import pytest
import torch
from published_statistics import SCHEDULES, SETTINGS, Mixture, draw, normal
from toys import Model

from gms_fast import NoiseMoments
from gms_fast.measure.estimate import regress, slope
from gms_fast.schedules import EDM, Flow, VPContinuous
from gms_fast.statistics import empirical_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("form", ["x0", "v", "flow", "edm"])
@pytest.mark.parametrize("schedule", SCHEDULES[:3], ids=repr)
def test_every_form_of_prediction_gives_the_same(schedule, form):
    settings = {"N": 3, "samples": 6, "t_min": 0.05}
    one, other = (empirical_model(Mixture(schedule, f), draw(6), **settings) for f in ("noise", form))
    for name in "lsb":
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-6)


def test_noise_moments_count_by_their_mean():
    mixture = Mixture(EDM())
    three = Model(lambda x, t: NoiseMoments(mixture(x, t), x, x), schedule=EDM(), sample_shape=(2,))
    one, other = (empirical_model(m, draw(6), N=3, samples=6) for m in (mixture, three))
    assert torch.equal(one.b, other.b)


def test_window_is_a_width_in_lambda():
    lam, l = torch.linspace(0, 1, 11, dtype=torch.float64), normal(11, 2)
    raw = slope(l, lam, None)
    torch.testing.assert_close(raw[1:-1], (l[2:] - l[:-2]) / 0.2)
    torch.testing.assert_close(raw[[0, -1]], (l[[1, -1]] - l[[0, -2]]) / 0.1)
    torch.testing.assert_close(slope(l, lam, 0.0), raw)
    smooth = slope(l, lam, 0.4)
    torch.testing.assert_close(smooth[5], raw[3:8].mean(0))
    torch.testing.assert_close(smooth[[0, -1]], torch.stack([raw[:3].mean(0), raw[-3:].mean(0)]))


def test_tolerance_says_where_f_varies_too_little():
    means = torch.tensor([[2.0, 3.0, 4.0 + 1e-6, 6.0 + 5e-6, 1.0]], dtype=torch.float64)[..., None]
    s, b = regress(means, tolerance=1e-7)
    assert float(s) == pytest.approx(5, rel=1e-6)
    assert float(b) == pytest.approx(3 - 2 * 5, rel=1e-6)
    s, b = regress(means, tolerance=1e-5)
    assert (float(s), float(b)) == (0, 3)
    s, b = regress(means, tolerance=0.0, limit=4.9)
    assert (float(s), float(b)) == (0, 3)


def test_nearly_gaussian_data_do_not_break_the_solver():
    """The error of l' is divided by a tiny variance of f; s beyond the grid's rate is cut."""

    def almost(x, t):
        alpha, sigma = (f(schedule.from_network_time(t))[:, None] for f in (schedule.alpha, schedule.sigma))
        return sigma * x / ((0.5 * alpha) ** 2 + sigma**2) + 1e-4 * torch.tanh(x)

    schedule = VPContinuous()
    model = Model(almost, schedule=schedule, sample_shape=(2,))
    known = empirical_model(model, 0.5 * normal(64, 2), N=60, samples=64)
    assert float(known.s.abs().max()) <= 60 / float(known.lam[-1] - known.lam[0])
    for curve in known.tables:
        assert curve.isfinite().all()


def test_batches_do_not_matter_and_seeds_do():
    data, model = draw(20), Mixture(EDM())
    one, other = (empirical_model(model, data, batch_size=b, **SETTINGS) for b in (7, 64))
    for name in "lsb":
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-11)
    again = empirical_model(model, data, seed=1, **SETTINGS)
    assert (again.l - one.l).abs().max() > 1e-3


def test_probes_know_nothing_of_the_noise():
    """Probes must be independent of x.

    For eps_i = x_0 x_1, J v has v_0 v_1 x_i besides its diagonal: signs that follow x would add E|x_i|.
    """
    model = Model(lambda x, t: x.prod(1, keepdim=True).expand(-1, 2), schedule=EDM(), sample_shape=(2,))
    K = 4000
    got = empirical_model(model, torch.zeros(K, 2, dtype=torch.float64), N=2, samples=K, t_max=2.0, t_min=0.5)
    level = (-2 * got.lam).exp()[:, None]  # sigma^2; the standard deviation of sigma (J v) v is sqrt(2) times that
    assert bool((got.l.abs() < 6 * level * math.sqrt(2 / K)).all())


def test_few_data_are_used_again_with_other_noise():
    got = empirical_model(Mixture(EDM()), draw(4), **{**SETTINGS, "samples": 8})
    assert got.samples == 8
    assert (got.l - empirical_model(Mixture(EDM()), draw(4), **{**SETTINGS, "samples": 4}).l).abs().max() > 1e-4


def test_samples_are_taken_from_all_the_data():
    """The data is sorted: the mean of its first half is 0.5 less."""
    means = []
    schedule = EDM()
    model = Model(lambda x, t: means.append(x.mean()) or torch.zeros_like(x), schedule=schedule, sample_shape=(1,))
    data = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]
    empirical_model(model, data, N=2, samples=100, batch_size=100, t_max=0.003)
    assert abs(float(means[-1])) < 0.2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"N": 1}, "N must be an integer of at least 2: got 1"),
        ({"samples": 1}, "samples must be an integer of at least 2: got 1"),
        ({"samples": 4.0}, "samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed must be an integer of at least 0: got -1"),
        ({"window": -0.1}, "window must be finite and not negative"),
        ({"window": math.nan}, "window"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"t_max": 0.05}, "t_max must be greater than t_min: got 0.05, 0.05"),
        ({"t_max": 90.0}, "times must lie in"),
        ({"t_min": 0.0}, r"t_max, t_min must have finite log\(alpha/sigma\)"),
        ({"prediction": "score"}, "prediction must be one of"),
        ({"data": torch.zeros(4, 3)}, r"data must be \(M, 2\) with M >= 1: got \(4, 3\)"),
        ({"data": torch.zeros(0, 2)}, "data must be"),
        ({"data": torch.tensor([[0.0, math.inf]])}, "data must be finite"),
        ({"model": Model(schedule=None, sample_shape=(2,))}, "schedule must be given"),
        ({"schedule": "sigmoid"}, "schedule must be one of"),
    ],
)
def test_bad_input_is_refused_before_any_call(change, named):
    model = Model(schedule=EDM(), sample_shape=(2,))
    with pytest.raises(ValueError, match=named):
        empirical_model(**{"model": model, "data": draw(4), **SETTINGS, **change})
    assert model.calls == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": 3}, "model must be callable"),
        ({"data": torch.zeros(4, 2, dtype=torch.uint8)}, "data must be a floating-point tensor"),
        ({"data": [[0.0, 1.0]]}, "data must be a floating-point tensor"),
        ({"schedule": 3}, "schedule must be a Schedule"),
    ],
)
def test_input_of_a_wrong_type_is_refused(change, named):
    with pytest.raises(TypeError, match=named):
        empirical_model(**{"model": Mixture(EDM()), "data": draw(4), **SETTINGS, **change})


def test_flow_needs_ends_with_signal_and_noise():
    with pytest.raises(ValueError, match="t_max, t_min must have finite"):
        empirical_model(Mixture(Flow()), draw(4), N=2, samples=2)


def test_model_that_returns_nan_is_named_by_its_node():
    mixture = Mixture(EDM())
    model = Model(lambda x, t: mixture(x, t) / (t < 1)[:, None], schedule=EDM(), sample_shape=(2,))
    with pytest.raises(ValueError, match=r"NaN or infinity at node 0 \(t = 20\)"):
        empirical_model(model, draw(4), **SETTINGS)
