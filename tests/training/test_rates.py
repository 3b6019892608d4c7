"""The learning rate over a run."""

import pytest

from gms_fast.training import Settings

pytestmark = pytest.mark.usefixtures("one_thread")


def test_learning_rate_warms_up_and_decays():
    for decay, middle, last in (("cosine", 0.5, 0.0), ("linear", 0.5, 0.01), ("constant", 1.0, 1.0)):
        run = Settings(steps=100, lr=2.0, warmup=10, decay=decay)
        assert run.lr_at(0) == pytest.approx(0.2)
        assert run.lr_at(50) == pytest.approx(2 * middle)
        assert run.lr_at(99) == pytest.approx(2 * last, abs=1e-3)
