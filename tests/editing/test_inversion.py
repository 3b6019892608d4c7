"""Inversion: the round trip has the solver's order; interpolation between two images."""

import math

import gaussian_field
import pytest
import torch
from gaussian_field import PICTURE, Field
from toys import Model, polynomial

import gms_fast
from gms_fast import editing, schedules, solvers
from gms_fast.editing.inversion import on_circle
from gms_fast.models import GaussianMixture1D

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULES = {
    "linear": schedules.VPLinear(T=20_000, beta_1=5e-6, beta_T=1e-3),
    "edm": schedules.EDM(),
    "flow": schedules.Flow(t_max=0.999),
}
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpm-solver++": 2, "unip:order=2": 2}


def there_and_back(model, x, steps, solver, **given):
    noise = editing.invert(model, x, steps=steps, solver=solver, clip=None, **given)
    return gms_fast.sample(model, steps, solver=solver, x_T=noise, clip=None) - x


@pytest.mark.parametrize("solver", ORDERS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_error_falls_with_the_order_of_the_solver(name, solver):
    model = Field(schedule=SCHEDULES[name])
    errors = [float(there_and_back(model, PICTURE, k, solver).square().mean().sqrt()) for k in (40, 80)]
    slope = math.log2(errors[0] / errors[1])
    assert slope > ORDERS[solver] - 0.25, errors  # for even orders, errors of both directions partly cancel
    assert errors[1] < (0.05, 0.005)[ORDERS[solver] - 1]


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_data_that_are_no_gaussian_come_back_too(solver):
    model = GaussianMixture1D((0.4, 0.6), (-0.6, 0.5), (0.12, 0.08), schedule=schedules.EDM())
    x = torch.tensor([[-0.7], [-0.5], [0.4], [0.55]], dtype=torch.float64)
    errors = [float(there_and_back(model, x, k, solver, shape=(1,)).square().mean().sqrt()) for k in (50, 100)]
    assert math.log2(errors[0] / errors[1]) > ORDERS[solver] - 0.25, errors


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_noise_is_that_of_the_flow_of_gaussian_data(name):
    """Compare with x_T = alpha mu + sqrt(alpha^2 + sigma^2/lam) (x_0 - mu) per eigenvector."""
    schedule = SCHEDULES[name]
    x_T = editing.invert(Field(schedule=schedule), PICTURE, steps=100, solver="heun").flatten()
    alpha, sigma = float(schedule.alpha(schedule.t_max)), float(schedule.sigma(schedule.t_max))
    V, lam, mu = gaussian_field.VECTORS, gaussian_field.VALUES, gaussian_field.MEAN
    wanted = alpha * mu + V @ ((alpha**2 + sigma**2 / lam).sqrt() * (V.T @ (PICTURE.flatten() - mu)))
    assert (x_T - wanted).abs().max() < 2e-3 * float(wanted.abs().max())


def test_the_last_call_is_undone_to_second_order():
    """Take one level of little noise: x + sigma e, with e at alpha x_0, not at the result."""
    schedule = schedules.EDM(sigma_min=0.01)
    model = Field(schedule=schedule)
    x = editing.invert(model, PICTURE, strength="level=0.01", steps=1, solver="ddim")
    back = gms_fast.sample(model, timesteps=[0.01], x_T=x, solver="ddim")
    assert (back - PICTURE).abs().max() < 1e-5
    assert (x - PICTURE).abs().max() > 1e-4


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm-solver++"])
def test_it_takes_the_calls_of_the_way_back(solver):
    for schedule in (schedules.VPLinear(), schedules.EDM(), schedules.Flow(t_max=0.999)):
        model = Model(polynomial, sample_shape=(1, 4, 4), schedule=schedule)
        noise = editing.invert(model, PICTURE.clamp(-1, 1), steps=5, solver=solver)
        there = model.calls
        gms_fast.sample(model, 5, solver=solver, x_T=noise)
        assert there == model.calls - there


def test_a_level_in_the_middle():
    model = Field(schedule=schedules.EDM())
    noise = editing.invert(model, PICTURE, steps=60, solver="heun", strength="level=2")
    times = editing.timesteps(model, 60, solver="heun", strength="level=2")
    assert times[0] == 2
    back = gms_fast.sample(model, timesteps=times, solver="heun", x_T=noise)
    assert (back - PICTURE).abs().max() < 1e-3
    assert torch.equal(editing.invert(model, PICTURE, strength=0), PICTURE)


def test_batches_give_the_same_bits():
    model = Model(polynomial, sample_shape=(1, 4, 4))
    x = torch.linspace(-1, 1, 3 * 16).reshape(3, 1, 4, 4)
    together = editing.invert(model, x, steps=4)
    assert torch.equal(together, torch.cat([editing.invert(model, part, steps=4) for part in x]))
    assert torch.equal(together, editing.invert(model, x, steps=4, batch_size=2))


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ("gms", "solver must be invertible, one of DDIM, Euler, Heun, DPMSolverPP, UniP: got GMS"),
        ("er-sde", "solver must be invertible.*got ERSDE"),
        ("ddim:eta=0.5", r"solver must be deterministic to be inverted: DDIM\(eta=0.5"),
        ("euler:churn=3", r"solver must be deterministic to be inverted: Euler\(churn=3"),
        ("dpm-solver++:sde=True", "solver must be deterministic to be inverted: DPMSolverPP"),
    ],
)
def test_solvers_without_a_reverse_are_refused(solver, message):
    model = Model(polynomial, sample_shape=(1, 4, 4))
    with pytest.raises(ValueError, match=message):
        editing.invert(model, PICTURE.clamp(-1, 1), solver=solver)
    assert model.calls == 0


def test_levels_without_signal():
    """Flow ends at alpha = 0: DDIM and Heun reach it, solvers in log(alpha/sigma) do not."""
    model = Field(schedule=schedules.Flow())
    for solver in ("ddim", "heun"):
        assert there_and_back(model, PICTURE, 60, solver).abs().max() < 0.1
    with pytest.raises(ValueError, match=r"strength must lead to alpha > 0 for DPMSolverPP.*or use ddim or heun"):
        editing.invert(model, PICTURE, solver="dpm-solver++")


def test_a_host_gets_the_bits_of_the_loop():
    model = Model(polynomial, sample_shape=(1, 4, 4), clip=None)
    inverse = editing.Inversion(then=solvers.Heun())
    x_0 = PICTURE.float()
    stepper = gms_fast.Stepper(inverse, model.schedule, steps=4)
    x = float(model.schedule.alpha(0)) * x_0
    for i, t in enumerate(stepper.network_times):
        x = stepper.step(i, model(x, x.new_full((1,), t)), x)
    assert torch.equal(x, editing.invert(model, x_0, steps=4, solver="heun"))


def test_the_great_circle():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    points = on_circle(a, b, torch.tensor([0.0, 0.25, 0.5, 1.0]))
    assert torch.allclose(points[[0, -1]], torch.stack([a, b]), atol=1e-6)
    assert torch.allclose(points.norm(dim=1), torch.full((4,), 3.0))
    assert torch.allclose(points[2], torch.full((2,), 3 / math.sqrt(2)))
    assert torch.allclose(on_circle(a, a, torch.tensor([0.3])), a[None])


def test_pictures_between_two():
    model = Field(schedule=schedules.EDM())
    other = -PICTURE
    way = editing.interpolate(model, PICTURE[0], other[0], n=5, steps=60, solver="heun")
    assert way.shape == (5, 1, 4, 4)
    assert (way[0] - PICTURE[0]).abs().max() < 1e-3
    assert (way[-1] - other[0]).abs().max() < 1e-3
    near = (way - PICTURE).flatten(1).norm(dim=1)
    assert bool((near.diff() > 0).all())
    same = editing.interpolate(model, PICTURE, other, n=2, steps=60, solver="heun", strength=0.5)
    assert (same - torch.cat([PICTURE, other])).abs().max() < 1e-3


def test_bad_ways_are_refused():
    model = Field(schedule=schedules.EDM())
    with pytest.raises(ValueError, match="n must be at least 2: got 1"):
        editing.interpolate(model, PICTURE, PICTURE, n=1)
    with pytest.raises(ValueError, match="second must be"):
        editing.interpolate(model, PICTURE, PICTURE[..., :2])
    with pytest.raises(ValueError, match="first must be one image, of the same size as the other"):
        editing.interpolate(model, PICTURE.expand(2, 1, 4, 4), PICTURE)
    assert model.calls == 0


def test_a_picture_and_itself():
    """Check angles so small that acos would give NaN."""
    model = Model(polynomial, sample_shape=(1, 4, 4), clip=(-1.0, 1.0))
    for seed in range(20):
        x = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        assert bool(editing.interpolate(model, x, x, n=3, steps=2, solver="ddim").isfinite().all())
    assert torch.equal(on_circle(0 * x, 0 * x, torch.tensor([0.5])), 0 * x[None])


def test_conditions_of_one_row_and_of_two():
    seen = []

    class Conditional(Model):
        def __call__(self, x, t, label):
            assert len(label) == len(x)
            seen.append(label.tolist())
            return 0 * x

    model = Conditional(sample_shape=(1, 4, 4))
    ends = PICTURE[0].clamp(-1, 1), -PICTURE[0].clamp(-1, 1)
    for labels, at_ends, on_the_way in (([3], [3, 3], [3] * 4), ([3, 5], [3, 5], [3, 3, 5, 5])):
        seen.clear()
        editing.interpolate(model, *ends, n=4, steps=2, solver="ddim", condition={"label": torch.tensor(labels)})
        assert seen == [at_ends] * 3 + [on_the_way] * 3


def test_a_last_call_cannot_take_the_noise_away_again():
    model = Model(polynomial, sample_shape=(1, 4, 4), clip=None)
    x = PICTURE.float()
    given = {"solver": editing.Inversion(then=solvers.DDIM()), "x_T": x}
    assert torch.equal(gms_fast.sample(model, 3, denoise=True, **given), gms_fast.sample(model, 3, **given))
