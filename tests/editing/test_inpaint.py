"""Inpainting: the conditional law of Gaussian data, exact known pixels, all kinds of masks."""

import math

import gaussian_field
import pytest
import torch
from gaussian_field import PICTURE, Field
from toys import Model, polynomial

import gms_fast
from gms_fast import editing, schedules, solvers
from gms_fast.editing import repaint
from gms_fast.editing.inpaint import mask_of

pytestmark = pytest.mark.usefixtures("one_thread")

LOWER = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None].expand(4, 4)
PICTURES = torch.linspace(-1, 1, 3 * 16).reshape(3, 1, 4, 4)
SOLVERS = (
    "gms",
    "sn-ddpm",
    "ddpm",
    "ddim",
    "er-sde",
    "heun",
    "euler:churn=2",
    "heun:churn=2",
    "dpm-solver++",
    "unip",
    "unipc",
    "dpm-solver++:sde=True",
)


def toy(**attributes):
    return Model(polynomial, sample_shape=(1, 4, 4), clip=(-1.0, 1.0), **attributes)


def unknown_part(schedule, resample, n):
    """Errors of mean and covariance, in standard errors, of exact steps below the known half."""
    solver = solvers.GMS(covariance=gaussian_field.LAW, switch=0, clip_pixel=None)
    x = editing.inpaint(Field(schedule=schedule), PICTURE, LOWER, n=n, steps=50, resample=resample, solver=solver)
    free = LOWER.flatten().bool()
    law = gaussian_field.conditional(free, PICTURE.flatten())
    return gaussian_field.in_errors(x.flatten(1)[:, free], *law)


@pytest.mark.parametrize("schedule", [schedules.VPLinear(), schedules.EDM()], ids=repr)
def test_unknown_pixels_have_the_law_that_known_ones_give_them(schedule):
    """Compare with the exact conditional law, which needs repeated steps.

    Without the return to the step's start the law is missed: known pixels are noised anew at every level, too late.
    """
    assert max(unknown_part(schedule, 10, 400)) < 4.5  # standard errors of 8 means and 36 covariances
    assert max(unknown_part(schedule, 1, 400)) > 4.5


@pytest.mark.parametrize("resample", [1, 3])
@pytest.mark.parametrize("solver", SOLVERS)
def test_known_pixels_come_back_to_the_bit(solver, resample):
    for schedule in (schedules.VPLinear(), schedules.EDM(), schedules.Flow(t_max=0.99)):
        model = toy(schedule=schedule)
        x = editing.inpaint(model, PICTURES, LOWER, steps=4, solver=solver, resample=resample, seed=2)
        assert torch.equal(x[:, :, :2], PICTURES[:, :, :2])
        assert bool(x.isfinite().all())
        assert not torch.equal(x[:, :, 2:], PICTURES[:, :, 2:])
        one_by_one = [
            editing.inpaint(
                model, PICTURES[i], LOWER, steps=4, solver=solver, resample=resample, seed=2, sample_offset=i
            )
            for i in range(3)
        ]
        assert torch.equal(x, torch.cat(one_by_one))


@pytest.mark.parametrize("solver", ["ddim", "er-sde", "heun", "gms"])
def test_calls_of_the_network(solver):
    """Expect r evaluations per step, and one final evaluation."""
    plain, built = toy(), solvers.build(solver)
    editing.inpaint(plain, PICTURES, LOWER, steps=4, solver=solver)
    calls = built.calls(plain.schedule, built.times(plain.schedule, 4))
    assert plain.calls == calls
    again = toy()
    editing.inpaint(again, PICTURES, LOWER, steps=4, solver=solver, resample=3)
    assert again.calls == 3 * (calls - built.denoise) + built.denoise


def test_soft_masks_are_strengths():
    """Check that a pixel of mask m is known above the noise level of strength m and free below."""
    seen = []
    model = Model(lambda x, t: seen.append((float(t[0]), x)) or 0 * x, sample_shape=(1, 1, 3), clip=None)
    image = torch.full((2000, 1, 1, 3), 5.0)
    mask = torch.tensor([[0.0, 0.5, 1.0]])
    editing.inpaint(model, image, mask, steps=9, solver="ddpm")
    shares = [float(model.schedule.share(t)) for t, _ in seen]
    alpha, sigma = (f([t for t, _ in seen]).float()[:, None] for f in (model.schedule.alpha, model.schedule.sigma))
    off = torch.stack([x.mean(0).flatten() for _, x in seen]) - 5 * alpha
    known = off.abs() < 5 * sigma / 2000**0.5
    late = [i for i, s in enumerate(shares) if 0 < s < 1]
    assert known[late, 0].all()
    assert not known[late[2:], 2].any()
    assert known[[i for i in late if shares[i] >= 0.5], 1].all()
    fixed = editing.inpaint(model, image, mask, steps=9, solver="ddpm")
    assert torch.equal(fixed[..., 0], image[..., 0])


def test_less_strength_stays_near_what_was_there():
    model = Field(schedule=schedules.VPLinear())
    off = [
        float((editing.inpaint(model, PICTURE, LOWER, n=200, solver="ddpm", strength=s) - PICTURE).square().mean())
        for s in (0.05, 0.2, 1.0)
    ]
    assert off[0] < off[1] < off[2]
    assert torch.equal(editing.inpaint(model, PICTURE, LOWER, strength=0), PICTURE)


def test_masks_of_all_shapes():
    x = torch.zeros(2, 3, 4, 4)
    whole = LOWER[None, None]
    for mask in (LOWER, LOWER[None], whole, LOWER.bool(), whole.half(), whole.double()):
        assert torch.equal(mask_of(mask, x), whole)
    each = torch.stack([LOWER, 1 - LOWER])[:, None]
    assert torch.equal(mask_of(each, x), each)


def test_a_large_mask_is_shrunk_to_latents():
    """Check that a latent is known where all of its pixels are."""
    large = torch.zeros(32, 24)
    large[8, 5] = 1
    large[31, 23] = 0.5
    small = mask_of(large, torch.zeros(1, 4, 4, 4))[0, 0]
    wanted = torch.zeros(4, 4)
    wanted[1, 0], wanted[3, 3] = 1, 0.5
    assert torch.equal(small, wanted)
    latents = torch.linspace(-20, 20, 64).reshape(4, 4, 4)
    model = Model(polynomial, sample_shape=(4, 4, 4), clip=None)
    x = editing.inpaint(model, latents, large, steps=3, solver="ddim")
    assert torch.equal(x[0][:, wanted == 0], latents[:, wanted == 0])


def test_data_that_are_no_pictures():
    model = Model(polynomial, sample_shape=(5,), clip=None)
    image, mask = torch.linspace(-1, 1, 10).reshape(2, 5), torch.tensor([1.0, 0, 1, 0, 0])
    x = editing.inpaint(model, image, mask, steps=3)
    assert torch.equal(x[:, mask == 0], image[:, mask == 0])
    assert not torch.equal(x[:, mask == 1], image[:, mask == 1])


BAD = {
    "everything": (torch.ones(4, 4), ValueError, "mask must not be 1 everywhere: nothing would be known"),
    "nothing": (torch.zeros(4, 4), ValueError, "mask must not be 0 everywhere: nothing would be redrawn"),
    "one of several": (
        torch.stack([LOWER, LOWER, 0 * LOWER])[:, None], ValueError, "mask of sample 2 must not be 0 everywhere",
    ),
    "range": (2 * LOWER, ValueError, r"mask must lie in \[0, 1\], 1 where the image is redrawn: got 0 .. 2"),
    "nan": (LOWER / 0, ValueError, r"mask must lie in \[0, 1\]"),
    "size": (torch.ones(3, 4), ValueError, r"mask must be \(4, 4\), \(1, 4, 4\) or \(3, 1, 4, 4\), or a whole"),
    "channels": (torch.ones(3, 3, 4, 4), ValueError, r"mask must be .*: got \(3, 3, 4, 4\)"),
    "rows": (torch.ones(2, 1, 4, 4), ValueError, r"mask must be .*: got \(2, 1, 4, 4\)"),
    "one number": (torch.tensor(1.0), ValueError, r"mask must be .*: got \(\)"),
    "bytes": (255 * LOWER.byte(), TypeError, "mask must be a tensor of bools or of floats"),
    "list": ([0, 1], TypeError, "mask must be a tensor of bools or of floats in .*: got list"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_masks_are_refused_before_the_model_is_called(case):
    mask, kind, message = BAD[case]
    model = toy()
    with pytest.raises(kind, match=message):
        editing.inpaint(model, PICTURES, mask)
    assert model.calls == 0


@pytest.mark.parametrize("resample", [0, 1.5, True])
def test_bad_numbers_of_repetitions_are_refused(resample):
    with pytest.raises(ValueError, match="resample must be an integer of at least 1"):
        editing.inpaint(toy(), PICTURES, LOWER, resample=resample)


def test_missing_moments_are_told_of_in_the_name_of_the_solver():
    with pytest.raises(ValueError, match="model must return NoiseMoments with 3 moments for GMS, but returned 1"):
        editing.inpaint(Field(schedule=schedules.VPLinear()), PICTURE, LOWER)


def test_seeds_decide():
    model = toy()
    x, y = (editing.inpaint(model, PICTURES, LOWER, steps=3, seed=s) for s in (0, 1))
    assert not torch.equal(x, y)
    each = editing.inpaint(model, PICTURES, LOWER, steps=3, seed=[0, 1, 0])
    assert torch.equal(each[0], x[0])
    assert torch.equal(each[1:2], editing.inpaint(model, PICTURES[1], LOWER, steps=3, seed=1))


def test_what_a_seed_drew_is_made_anew_with_new_noise():
    """Check that the edit's noise differs from the noise that drew the image."""
    model = Field(schedule=schedules.VPLinear())
    drawn = gms_fast.sample(model, 10, n=300, seed=1, solver="ddpm", dtype=torch.float64)
    again = editing.inpaint(model, drawn, LOWER, steps=10, seed=1, solver="ddpm")
    parts = torch.stack([drawn[:, 0, 3, 3], again[:, 0, 3, 3]])
    assert abs(float(torch.corrcoef(parts)[0, 1])) < 0.5 + 4 / math.sqrt(
        300
    )  # from the known half only, not from noise


@pytest.mark.parametrize("resample", [1, 3])
@pytest.mark.parametrize("then", ["ddim", "heun", "ddpm", "dpm-solver++", "er-sde"])
def test_runs_may_begin_without_signal(then, resample):
    """Start from flow matching at t = 1 and from zero terminal SNR."""
    betas = torch.linspace(1e-3, 0.1, 50).double()
    betas[-1] = 1
    for schedule in (schedules.Flow(), schedules.Flow(shift=3.0), schedules.VP(betas)):
        model = Model(lambda x, t: -0.3 * x, sample_shape=(1, 4, 4), prediction="x0", clip=(-1.0, 1.0))
        model.schedule = schedule
        x = editing.inpaint(model, PICTURES, LOWER, solver=then, steps=4, resample=resample)
        assert torch.equal(x[:, :, :2], PICTURES[:, :, :2])
        assert bool(x.isfinite().all())


def test_a_little_softness_changes_little():
    """Below the smallest share of the run, only the last evaluation at the least noise acts."""
    model = toy()
    mask = torch.where(LOWER > 0, 1.0, 1 / 255)
    x = editing.inpaint(model, PICTURES, mask, solver="ddim", steps=10)
    least = float(model.schedule.sigma(0.0))
    assert (x - PICTURES)[:, :, :2].abs().max() < 6 * least


@pytest.mark.parametrize("strength", [1, 0.5])
def test_every_repetition_draws_new_noise(strength, monkeypatch):
    """Check the counters, also with a `Stepper` and from the middle of a run."""
    counters = []
    affine_noise = repaint.fused.affine_noise
    watched = lambda x, *rest: counters.append(rest[-1].step) or affine_noise(x, *rest)  # noqa: E731
    monkeypatch.setattr(repaint.fused, "affine_noise", watched)
    model = toy()
    editing.inpaint(model, PICTURES, LOWER, solver="ddpm", steps=3, resample=3, strength=strength)
    assert len(counters) == len(set(counters)) == 3 * 3 + 3 * 2  # noise of known pixels and of returns
    own, counters[:] = list(counters), []
    times = editing.timesteps(model, 3, solver="ddpm", strength=strength)
    solver = editing.Inpainting(image=PICTURES, mask=LOWER[None, None], then=solvers.DDPM(), resample=3)
    stepper = gms_fast.Stepper(solver, model.schedule, timesteps=times)
    x = PICTURES
    for i, t in enumerate(stepper.network_times):
        x = stepper.step(i, model(x, x.new_full((3,), t)), x)
    assert counters == own


def test_churn_that_leaves_no_way_back_is_refused():
    with pytest.raises(ValueError, match="resample must be 1 where churn ends a step with more noise"):
        editing.inpaint(toy(), PICTURES, LOWER, solver="euler:churn=40", steps=100, strength=0.5, resample=2)


def test_a_mask_that_covers_all_when_it_is_shrunk():
    mask = torch.zeros(8, 8)
    mask[::2, ::2] = 1
    with pytest.raises(ValueError, match=r"mask, reduced to \(4, 4\), must not be 1 everywhere"):
        editing.inpaint(toy(), PICTURES, mask)


def test_results_are_memory_of_their_own():
    model = toy()
    for edit in (
        editing.stroke(model, PICTURES, strength=0, clip=None),
        editing.inpaint(model, PICTURES, LOWER, strength=0, clip=None),
        editing.invert(model, PICTURES, strength=0, clip=None),
    ):
        assert torch.equal(edit, PICTURES)
        assert edit.data_ptr() != PICTURES.data_ptr()
