"""The inpainting solver: its plan, and its steps in `sample` and in a `Stepper`."""

import pytest
import torch
from toys import Model, polynomial

import gms_fast
from gms_fast import editing, schedules, solvers
from gms_fast.editing.repaint import Inpainting, _once, _places, _units

IMAGE = torch.linspace(-1, 1, 2 * 16).reshape(2, 1, 4, 4)
MASK = (torch.arange(16).reshape(1, 1, 4, 4) > 7).float()
MODEL = Model(polynomial, sample_shape=(1, 4, 4), clip=(-1.0, 1.0))


def inpainting(then, resample=2, **given):
    return Inpainting(**{"image": IMAGE, "mask": MASK, "then": solvers.build(then), "resample": resample} | given)


def test_steps_of_one_call_and_of_two():
    assert list(_units([9, 5, 2])) == [[9], [5]]
    assert list(_units([9, 5, 5, 2, 2])) == [[9, 5], [5, 2]]  # Heun's steps
    assert list(_units([9, 5, 5, 0])) == [[9, 5], [5]]
    assert list(_units([9])) == []


@pytest.mark.parametrize("times", [[9, 5, 2], [9, 5, 5, 2, 2], [9, 5, 5, 0], [9, 5], [9]])
@pytest.mark.parametrize("resample", [1, 2, 5])
def test_repetitions_are_found_again(times, resample):
    places = list(_places(times, resample))
    repeated = [*(times[place.number] for place in places), times[-1]]
    assert _once(repeated, resample) == times
    assert len(places) == resample * (len(times) - 1)
    assert sum(place.again for place in places) == (resample - 1) * len(list(_units(times)))


def test_the_plan_says_where_known_pixels_are_put():
    schedule = schedules.VPLinear()
    solver = inpainting("ddim")
    times = solver.times(schedule, [999, 500, 0])
    assert times == [999, 999, 500, 500, 0, 0]  # each step twice, plus the last evaluation
    first, second, *_, before, last = solver.plan(schedule, times)
    alpha, sigma = float(schedule.alpha(500)), float(schedule.sigma(500))
    assert first.arrival[:2] == second.arrival[:2] == (alpha, sigma)
    back = first.arrival.back
    assert back.scale * alpha == pytest.approx(float(schedule.alpha(999)))
    assert back.std**2 + (back.scale * sigma) ** 2 == pytest.approx(float(schedule.sigma(999)) ** 2)
    assert second.arrival.back is None
    assert before.arrival[:2] == (float(schedule.alpha(0)), float(schedule.sigma(0)))
    assert (last.number, last.arrival[:2], last.arrival.back) == (None, (1.0, 0.0), None)
    assert 0 < last.arrival.share < 1e-30  # only mask 0


def test_without_a_last_call_the_last_step_ends_at_the_picture():
    solver = inpainting("er-sde", resample=1)
    assert solver.times(schedules.VPLinear(), [999, 500, 0]) == [999, 500, 0]
    *_, last = solver.plan(schedules.VPLinear(), [999, 500, 0])
    assert last.arrival == (1.0, 0.0, float(schedules.VPLinear().share(500)), None)


@pytest.mark.parametrize("resample", [1, 3])
@pytest.mark.parametrize("then", ["ddim", "er-sde", "heun", "euler:churn=2", "dpm-solver++", "gms", "unipc"])
def test_a_host_gets_the_bits_of_the_loop(then, resample):
    solver = inpainting(then, resample)
    x = wanted = gms_fast.sample(MODEL, 4, solver=solver, n=2, seed=3)
    stepper = gms_fast.Stepper(solver, MODEL.schedule, steps=4, clip=MODEL.clip, seed=3)
    x = stepper.initial((2, 1, 4, 4))
    for i, t in enumerate(stepper.network_times):
        x = stepper.step(i, MODEL(x, x.new_full((2,), t)), x)
    assert torch.equal(x, wanted)
    assert torch.equal(x[MASK.expand_as(x) == 0], IMAGE[MASK.expand_as(x) == 0])


@pytest.mark.parametrize("resample", [1, 2])
@pytest.mark.parametrize("then", ["ddim", "heun", "dpm-solver++", "unipc", "er-sde"])
def test_a_host_may_begin_anywhere(then, resample):
    solver = inpainting(then, resample)
    stepper = gms_fast.Stepper(solver, MODEL.schedule, steps=4, clip=MODEL.clip)
    for begin in range(len(stepper.network_times)):
        x = IMAGE.clone()
        for i in range(begin, len(stepper.network_times)):
            x = stepper.step(i, MODEL(x, x.new_full((2,), stepper.network_times[i])), x)
        assert torch.equal(x[MASK.expand_as(x) == 0], IMAGE[MASK.expand_as(x) == 0])
        assert bool(x.isfinite().all())


def test_multistep_solvers_begin_anew_after_the_way_back():
    """Check that DPM-Solver++ then takes DDIM's steps."""
    x, y = (
        gms_fast.sample(MODEL, 5, solver=inpainting(then), n=2, timesteps=None) for then in ("dpm-solver++", "ddim")
    )
    times = solvers.build("dpm-solver++").times(MODEL.schedule, 5)
    y = gms_fast.sample(MODEL, timesteps=times, solver=inpainting("ddim"), n=2)
    assert torch.allclose(x, y, atol=1e-5)


def test_denoise_is_that_of_the_solver():
    x = gms_fast.sample(MODEL, 3, solver=inpainting("ddim"), n=2, denoise=False)
    assert torch.equal(x[:, :, :2], IMAGE[:, :, :2])
    model = Model(polynomial, sample_shape=(1, 4, 4), clip=(-1.0, 1.0))
    editing.inpaint(model, IMAGE, MASK[0, 0], steps=3, solver="ddim", denoise=False)
    assert model.calls == 3
    editing.inpaint(model, IMAGE, MASK[0, 0], steps=3, solver="er-sde", denoise=True)
    assert model.calls == 3 + 4


def test_the_plan_is_made_once_for_all_pictures():
    """Check that calls of `inpaint` do not fill the cache with one plan each."""
    runs = [
        gms_fast.Stepper(inpainting("ddim", image=image), MODEL.schedule, steps=4) for image in (IMAGE, 0.5 * IMAGE)
    ]
    assert runs[0].plan is runs[1].plan
    assert runs[0].plan is not gms_fast.Stepper(inpainting("ddim", 3), MODEL.schedule, steps=4).plan


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="solver must call the network at every step: got Inpainting"):
        inpainting(inpainting("ddim"))
    with pytest.raises(ValueError, match="solver must call the network at every step: got Inversion"):
        inpainting(editing.Inversion(then=solvers.DDIM()))
    with pytest.raises(ValueError, match=r"mask must broadcast to the image, \(2, 1, 4, 4\): got \(5, 5\)"):
        gms_fast.sample(MODEL, 2, solver=inpainting("ddim", mask=torch.ones(5, 5)), n=2)
    with pytest.raises(TypeError, match="mask must be a floating-point tensor: got None"):
        gms_fast.sample(MODEL, 2, solver=inpainting("ddim", mask=None), n=2)
    table = solvers.GGDMTable.of(solvers.UniP(), MODEL.schedule, MODEL.schedule.timesteps(5, 0.7)[:-1])
    with pytest.raises(ValueError, match="resample must be 1 for GGDM"):
        inpainting(solvers.GGDM(table))
    with pytest.raises(ValueError, match=r"image must hold 3 images, one for each sample: got 2"):
        gms_fast.sample(MODEL, 2, solver=inpainting("ddim"), n=3)
    with pytest.raises(ValueError, match=r"image must be \(n, \*\(1, 2, 2\)\) like the state"):
        gms_fast.sample(MODEL, 2, solver=inpainting("ddim"), n=2, shape=(1, 2, 2))
