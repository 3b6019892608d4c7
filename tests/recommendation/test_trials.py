"""Recommendation of a solver: from prior results, and by trial on a known distribution."""

import math

import pytest
import torch

import gms_fast
from gms_fast import search, solvers, statistics
from gms_fast.models import PointCloud
from gms_fast.recommendation.trials import _Distance
from gms_fast.storage.embedded import named

CLUSTERS = torch.randn(6, 4, generator=torch.Generator().manual_seed(3)).double() / 2


@pytest.fixture(scope="module")
def cloud():
    model = PointCloud(CLUSTERS, 0.1)
    model.clip = None
    return model


@pytest.fixture(scope="module")
def drawn(cloud):
    return cloud.draw(1500, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tried(cloud, drawn):
    return gms_fast.recommend(cloud, statistics.gaussian(drawn), 4, data=drawn.float(), samples=400, progress=False)


def test_trials_come_to_the_best_of_those_that_went_all_the_way(tried):
    ends = [t.samples for t in tried.trials]
    assert ends == sorted(ends, reverse=True)
    assert set(ends) == {400, 200, 100, 50}
    last = [t.distance for t in tried.trials if t.samples == 400]
    assert len(last) > 1
    assert last == sorted(last)
    assert tried.text == tried.trials[0].text
    texts = [t.text for t in tried.trials]
    assert len(set(texts)) == len(texts)
    assert any(" then gms" in t for t in texts)
    assert "er-sde" in texts
    assert tried.text in str(tried)
    assert "400 samples" in str(tried)


def test_what_is_recommended_takes_so_many_calls_and_beats_the_first_idea(cloud, drawn, tried):
    calls = []

    def counted(x, t):
        calls.append(len(x))
        return cloud(x, t)

    options = {"schedule": cloud.schedule, "shape": (4,), "clip": None, "n": 1500, "seed": 5}
    x = gms_fast.sample(counted, tried.steps, solver=tried.solver, **options)
    assert len(calls) == 4
    first = gms_fast.sample(cloud, 3, solver="ddim", **options)
    distance = _Distance(drawn)
    assert distance(x.double()) < 0.5 * distance(first.double())


def test_the_text_makes_the_same_solver_where_tables_lie_beside_the_model():
    model = gms_fast.load("digits")
    found = gms_fast.recommend(model, statistics.load_gaussian("digits"), 3)
    assert "statistics" not in found.text
    assert found.trials == ()
    other = gms_fast.recommend(model, "digits", 3)
    assert other.text != found.text
    assert "statistics=digits" in other.text
    pair = [gms_fast.sample(model, f.steps, solver=s, n=2) for f in (found, other) for s in (f.text, f.solver)]
    assert all(torch.equal(pair[0], x) for x in pair)


def test_levels_are_in_units_of_the_data():
    known = statistics.load_gaussian("digits")
    found = gms_fast.recommend(gms_fast.load("digits"), known, 3)
    assert found.solver.until == pytest.approx(1.2 * math.sqrt(float(known.eigenvalues[0])), rel=0.05)


def test_tables_decide_which_solvers_there_are(cloud, drawn):
    gaussian = statistics.gaussian(drawn)
    assert gms_fast.recommend(cloud, gaussian, 5).text.endswith("then er-sde")
    assert gms_fast.recommend(cloud, (), 5).text == "er-sde"
    table = solvers.GGDMTable.of(solvers.UniP(), cloud.schedule, [float(t) for t in cloud.schedule.timesteps(10)][:-1])
    assert gms_fast.recommend(cloud, (gaussian, table), table.steps + 1).text.endswith("then er-sde")
    curves = statistics.load("digits")
    found = gms_fast.recommend(gms_fast.load("digits"), curves, 5)
    assert torch.equal(found.solver.then.statistics.lam, curves.lam)


def test_a_table_that_lies_nowhere_is_not_taken_for_the_one_beside_the_model():
    own = statistics.gaussian(gms_fast.data.load("digits")[:300])
    found = gms_fast.recommend(gms_fast.load("digits"), own, 3)
    assert found.text.startswith("teleport:statistics=given,until=")
    beside = statistics.load_gaussian("digits")
    other = statistics.Gaussian(beside.mean, beside.eigenvectors, beside.eigenvalues, beside.residual + 0.01)
    assert "given" in gms_fast.recommend(gms_fast.load("digits"), other, 3).text
    assert found.solver.statistics is own
    with pytest.raises(FileNotFoundError, match="given"):
        gms_fast.sample(gms_fast.load("digits"), 3, solver=found.text)


def test_where_no_jump_fits_the_reason_is_true():
    wide = statistics.Gaussian(torch.zeros(1, 8, 8), torch.eye(64)[:, :1], torch.tensor([1e6]), range=(-1, 1))
    found = gms_fast.recommend(gms_fast.load("digits"), wide, 5)
    assert found.text == "dpm-solver-v3:trust=-2"
    assert "without Teleport" in found.reason
    narrow = statistics.Gaussian(torch.zeros(1, 8, 8), torch.eye(64)[:, :1], torch.tensor([1e-3]), range=(-1, 1))
    assert gms_fast.recommend(gms_fast.load("digits"), narrow, 5).solver.until == 1


def test_candidates_that_fail_are_left_and_others_go_on(cloud, drawn):
    """Noise predictions without signal have no information on x_0, so only jumps can be drawn."""
    flow = PointCloud(CLUSTERS, 0.1, schedule=gms_fast.schedules.Flow())
    options = {"data": drawn.float(), "samples": 400, "clip": None, "progress": False}
    found = gms_fast.recommend(flow, statistics.gaussian(drawn), 3, **options)
    assert found.trials
    assert all(t.text.startswith("teleport") and math.isfinite(t.distance) for t in found.trials)
    with pytest.raises(ValueError, match="NaN or infinity"):
        gms_fast.recommend(lambda x, t: x * torch.nan, (), 3, schedule=cloud.schedule, prediction="noise", **options)


def test_learned_tables_are_found_by_their_calls():
    if named("mnist", "ggdm-10.safetensors") is None:
        pytest.skip("no table is embedded")
    found = gms_fast.recommend(gms_fast.load("mnist"), "mnist", 10)
    assert found.text == "ggdm:table=mnist/10"
    assert found.steps == 10
    assert "ggdm" not in gms_fast.recommend(gms_fast.load("mnist"), "mnist", 9).text


def test_a_network_without_moments_is_not_tried_with_gms(cloud, drawn):
    def plain(x, t):
        return cloud(x, t).e1

    options = {"schedule": cloud.schedule, "prediction": "noise", "clip": None, "samples": 400, "progress": False}
    found = gms_fast.recommend(plain, (), 3, data=drawn.float(), **options)
    assert {t.text for t in found.trials} == {"er-sde", "dpm-solver++:denoise=False"}


def test_rows_of_a_condition_go_with_their_samples(cloud, drawn):
    class Shifted:
        """Network that takes a shift of each sample."""

        schedule, sample_shape, clip = cloud.schedule, (4,), None

        def __call__(self, x, t, shift):
            alpha = self.schedule.alpha(t).to(x).view(-1, 1)
            return cloud(x - alpha * shift, t)

    shift = torch.linspace(0, 5, 400).view(-1, 1).expand(-1, 4).clone()
    options = {"samples": 400, "progress": False}
    moved = gms_fast.recommend(
        Shifted(), (), 4, data=drawn[:400].float() + shift, condition={"shift": shift}, **options
    )
    still = gms_fast.recommend(Shifted(), (), 4, data=drawn[:400].float() + shift, condition={"shift": 0}, **options)
    assert moved.trials[0].distance < 0.1 * still.trials[0].distance


def test_distance_is_that_of_all_features_where_they_are_few(drawn):
    from gms_fast.quality.measures import frechet_distance

    assert _Distance(drawn)(drawn[:300] + 0.1) == pytest.approx(frechet_distance(drawn[:300] + 0.1, drawn), rel=1e-9)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"calls": 5000}, ValueError, "calls must be fewer than the number of times in the schedule: got 5000"),
        ({"calls": 0}, ValueError, "calls must be an integer of at least 1"),
        (
            {"statistics": 3},
            TypeError,
            "statistics must be one or more of Gaussian, EmpiricalModel, GGDMTable, or a model",
        ),
        ({"statistics": "nothing"}, FileNotFoundError, "none are at 'nothing'"),
        ({"features": search.features.pixels}, ValueError, "data must be given with features"),
        ({"data": torch.zeros(10, 3)}, ValueError, r"data must be \(N, 1, 8, 8\)"),
        ({"data": torch.randn(40, 1, 8, 8)}, ValueError, "data must have at least 50 samples: got 40"),
        ({"data": torch.randn(60, 1, 8, 8), "samples": 20}, ValueError, "samples must be at least 400"),
        ({"data": torch.randn(60, 1, 8, 8), "features": 3}, TypeError, "features must be callable"),
        ({"data": torch.randn(60, 1, 8, 8), "batch_size": 0}, ValueError, "batch_size must be an integer"),
        ({"data": torch.randn(60, 1, 8, 8), "condition": torch.ones(3)}, TypeError, "condition must be a dict"),
        ({"statistics": "mnist"}, ValueError, "shape"),
    ],
)
def test_what_cannot_be_is_refused(change, error, message):
    given = {"statistics": "digits", "calls": 5, "progress": False} | change
    with pytest.raises(error, match=message):
        gms_fast.recommend(gms_fast.load("digits"), **given)
