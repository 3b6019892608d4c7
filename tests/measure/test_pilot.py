"""The noise level down to which a Gaussian can replace a network, against recorded numbers."""

import pytest
import torch
from recorded_gaussian import MIXTURE, PROBLEM, VECTORS
from toys import Model

from gms_fast import schedules, statistics


class MixtureModel(Model):
    """The mixture as a network of EDM."""

    sample_shape, schedule, prediction = (6,), schedules.EDM(sigma_min=0.002, sigma_max=80.0), "x0"

    def __call__(self, x, t):
        return MIXTURE(x, float(self.schedule.from_network_time(t)[0]))


def test_pilot_measures_what_is_recorded():
    data = MIXTURE.draw(4000, torch.Generator().manual_seed(0))
    for sigma, score, r2 in VECTORS["pilot_metric"]["rows"]:
        schedule = schedules.EDM(sigma_min=min(sigma, 1.0) / 2, sigma_max=sigma)
        model = MixtureModel(schedule=schedule)
        found = statistics.pilot(model, data, MIXTURE.gaussian, levels=2)
        assert found.ratio[0] == pytest.approx(sigma)
        assert found.r2[0] == pytest.approx(r2, abs=0.01)
        x = data + sigma * torch.randn(4000, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        exact, ours = ((d - x) / sigma**2 for d in (MIXTURE(x, sigma), MIXTURE.gaussian.denoise(x, 1, sigma)))
        assert float(1 - (exact - ours).square().sum() / exact.square().sum()) == pytest.approx(score, abs=0.01)


def test_pilot_proposes_the_last_level_above_its_threshold():
    data = MIXTURE.draw(1000, torch.Generator().manual_seed(0))
    found = statistics.pilot(MixtureModel(), data, MIXTURE.gaussian, threshold=0.95)
    worse = [r for r, value in zip(found.ratio, found.r2, strict=True) if value <= 0.95]
    assert found.until == min(r for r in found.ratio if r > max(worse))
    assert found.ratio == sorted(found.ratio, reverse=True)
    assert 10 < found.until < 20
    assert statistics.pilot(MixtureModel(), data, MIXTURE.gaussian, threshold=0.99999).until is None


def test_pilot_refuses(tmp_path):
    with pytest.raises(ValueError, match="statistics must be of samples of shape"):
        statistics.pilot(MixtureModel(sample_shape=(4,)), torch.randn(5, 4), PROBLEM)
    with pytest.raises(ValueError, match="levels must be at least 2"):
        statistics.pilot(MixtureModel(), torch.randn(5, 6), PROBLEM, levels=1)
