"""Network outputs for a sample: one tensor, moments in channels, a learned variance."""

import pytest
import torch
from scheduler_loops import apart, normals

diffusers = pytest.importorskip("diffusers")
from gms_fast import SolverScheduler  # noqa: E402
from gms_fast.integrations.diffusers.outputs import Outputs  # noqa: E402
from gms_fast.models.learned_variance import LearnedVariance  # noqa: E402
from gms_fast.schedules import VPLinear  # noqa: E402
from gms_fast.types import NoiseMoments  # noqa: E402

X, T = normals(2, 3, 4, 4), torch.full((2,), 500.0)


def test_moments_that_a_solver_does_not_read_are_left():
    three = normals(2, 9, 4, 4, seed=1)
    for wanted in (1, 2, 3):
        read = Outputs("noise", wanted, None, None).read(three, X, T)
        assert [e is not None for e in read] == [k < wanted for k in range(3)]
        assert torch.equal(read.e1, three[:, :3])
    own = NoiseMoments(X, X, X)
    assert Outputs("noise", 3, None, None).read(own, X, T) is own


def test_learned_range_gives_a_step_of_the_training_as_diffusers_ddpm_takes_it():
    """Compare mean and variance of the step from t = 500 to 499 with DDPMScheduler."""
    theirs = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    output = torch.cat([0.1 * X, 0.3 * normals(2, 3, 4, 4, seed=2).tanh()], 1)
    ours = SolverScheduler.from_config(theirs.config, solver="sn-ddpm:clip_pixel=none")
    ours.set_timesteps(1000)
    ours.set_begin_index(499)
    z = normals(2, 3, 4, 4, seed=3)
    made = ours.step(output, 500, X, variance_noise=z).prev_sample
    alpha = theirs.alphas_cumprod
    x_0 = (X - (1 - alpha[500]) ** 0.5 * 0.1 * X) / alpha[500] ** 0.5
    beta = 1 - alpha[500] / alpha[499]
    kept = (1 - beta) ** 0.5 * (1 - alpha[499]) / (1 - alpha[500])
    mean = alpha[499] ** 0.5 * beta / (1 - alpha[500]) * x_0 + kept * X
    variance = theirs._get_variance(500, predicted_variance=output[:, 3:])
    assert apart(made, mean + (0.5 * variance).exp() * z) < 1e-4


def test_one_moment_of_a_learned_range_is_its_prediction():
    learned = LearnedVariance(VPLinear())
    read = Outputs("v", 1, "learned_range", learned).read(torch.cat([X, X], 1), X, T)
    assert torch.equal(read, X)
