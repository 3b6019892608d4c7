"""Strokes: strength 0 changes nothing, 1 equals `sample`, Gaussian data have a closed form."""

import gaussian_field
import pytest
import torch
from gaussian_field import Field
from toys import Model, polynomial

import gms_fast
from gms_fast import editing, schedules
from gms_fast.guidance import ClassifierFree
from gms_fast.models import GaussianMixture1D
from gms_fast.solvers import DDIM, GMS, Heun

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULES = {
    "linear": schedules.VPLinear(),
    "cosine": schedules.VPCosine(),
    "edm": schedules.EDM(),
    "flow": schedules.Flow(t_max=0.999),
    "shifted": schedules.Flow(t_max=0.999, shift=3.0),
    "levels": schedules.Levels([1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.05, 0.5, 3.0, 40.0]),
}
STRENGTHS = (0.25, 0.5, 0.8)
PICTURES = torch.linspace(-1, 1, 3 * 16).reshape(3, 1, 4, 4)


def toy(**attributes):
    return Model(polynomial, sample_shape=(1, 4, 4), clip=(-1.0, 1.0), **attributes)


def level(schedule, strength):
    start = editing.timesteps(Model(schedule=schedule), 1, strength=strength, solver="ddim")[0]
    return float(schedule.alpha(start)), float(schedule.sigma(start))


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_exact_steps_give_the_posterior_of_the_noised_guide(name, strength):
    """Draw x_s exactly given x_t: any number of steps gives x_0 from its law given x_t.

    E[x_0|x_t] = mu + K (x_t - alpha mu) with K = alpha C/(alpha^2 C + sigma^2). Its covariance is P, and x_t has mean
    alpha g and variance sigma^2. The result is E[x_0|x] at the last level, so its covariance lacks that of x_0 there.
    """
    schedule, n = SCHEDULES[name], 2000
    model, guide = Field(schedule=schedule), gaussian_field.PICTURE
    solver = GMS(covariance=gaussian_field.LAW, switch=0, clip_pixel=None)
    steps = 2 if name == "levels" and strength > 0.25 else 1 if name == "levels" else 4
    x = editing.stroke(model, guide, strength=strength, steps=steps, solver=solver, n=n, seed=3).flatten(1)
    alpha, sigma = level(schedule, strength)
    C, mu = gaussian_field.COVARIANCE, gaussian_field.MEAN
    K = alpha * C @ torch.linalg.inv(alpha**2 * C + sigma**2 * torch.eye(16))
    mean = mu + alpha * K @ (guide.flatten() - mu)
    covariance = C - alpha * K @ C + sigma**2 * K @ K.T
    off = gaussian_field.in_errors(x, mean, covariance)
    least = float(schedule.sigma(editing.timesteps(model, steps, strength=strength, solver=solver)[-1]))
    assert off[0] < 5, off  # standard errors of 16 means; 136 covariances
    assert off[1] < 5 + least**2 / float(covariance.diag().min()) * n**0.5, off


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "levels"])
def test_the_flow_from_the_noised_guide_is_that_of_gaussian_data(name, strength):
    """x_0 = mu + sqrt(lam/(alpha^2 lam + sigma^2)) (x_t - alpha mu) per eigenvector."""
    schedule = SCHEDULES[name]
    model, guide = Field(schedule=schedule), gaussian_field.PICTURE
    x_t = editing.noised(model, guide, strength=strength, n=4, seed=3).flatten(1)
    alpha, sigma = level(schedule, strength)
    V, lam, mu = gaussian_field.VECTORS, gaussian_field.VALUES, gaussian_field.MEAN
    wanted = mu + ((x_t - alpha * mu) @ V * (lam / (alpha**2 * lam + sigma**2)).sqrt()) @ V.T
    given = {"strength": strength, "solver": Heun(), "n": 4, "seed": 3}
    off = [editing.stroke(model, guide, steps=k, **given).flatten(1) - wanted for k in (20, 40)]
    coarse, fine = (float(error.abs().max()) for error in off)
    assert fine < 0.02
    assert coarse > 3 * fine  # order 2: a factor of 4 for short steps


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_are_the_guide_and_samples(name):
    model = toy(schedule=SCHEDULES[name])
    steps = 3
    assert torch.equal(editing.stroke(model, PICTURES, strength=0), PICTURES)
    assert model.calls == 0
    wild = PICTURES * (1 + 1e-3)
    assert torch.equal(editing.stroke(model, wild, strength=0.0, steps=steps), wild.clamp(-1, 1))
    for solver in ("gms", "er-sde", "heun", DDIM(eta=0.5)):
        edited = editing.stroke(model, PICTURES, strength=1, steps=steps, solver=solver, seed=5, sample_offset=2)
        drawn = gms_fast.sample(model, steps, n=3, solver=solver, seed=5, sample_offset=2)
        assert torch.equal(edited, drawn)


def test_it_is_the_loop_from_the_noised_guide():
    model = toy(schedule=schedules.VPLinear())
    start = {"strength": 0.4, "solver": "er-sde"}
    x = editing.stroke(model, PICTURES, steps=5, seed=[4, 5, 6], **start)
    times = editing.timesteps(model, 5, **start)
    guide = editing.noised(model, PICTURES, strength=0.4, seed=[4, 5, 6])
    assert torch.equal(x, gms_fast.sample(model, timesteps=times, solver="er-sde", x_T=guide, seed=[4, 5, 6]))
    assert times[0] == 400  # 0.4 of 999, rounded to a whole time
    assert len(times) == 6
    stepper = gms_fast.Stepper("er-sde", model.schedule, timesteps=times, clip=model.clip, seed=[4, 5, 6])
    for i, t in enumerate(stepper.network_times):
        guide = stepper.step(i, model(guide, guide.new_full((3,), t)), guide)
    assert torch.equal(x, guide)


@pytest.mark.parametrize("solver", ["gms", "ddpm", "er-sde"])
def test_split_batches_and_seeds_of_samples_give_the_same_bits(solver):
    model = toy()
    together = editing.stroke(model, PICTURES, steps=4, solver=solver, seed=9, repeats=2)
    parts = [
        editing.stroke(model, PICTURES[i : i + 1], steps=4, solver=solver, seed=9, sample_offset=i, repeats=2)
        for i in range(3)
    ]
    assert torch.equal(together, torch.cat(parts))
    split = editing.stroke(model, PICTURES, steps=4, solver=solver, seed=9, repeats=2, batch_size=2)
    assert torch.equal(together, split)
    several = editing.stroke(model, PICTURES[1], n=3, steps=4, solver=solver, seed=9)
    assert torch.equal(
        several[1:2], editing.stroke(model, PICTURES[1], steps=4, solver=solver, seed=9, sample_offset=1)
    )
    assert not torch.equal(several[0], several[2])


def test_noise_is_apart_from_that_of_samples_and_new_at_each_repeat():
    """Check that an image drawn with a seed gets new noise from it: in guide, steps and passes."""
    seen = []
    network = Model(lambda x, t: seen.append(x) or 0 * x, sample_shape=(1, 4, 4), clip=None)
    drawn = gms_fast.sample(network, 3, n=1, seed=1, solver="ddpm", callback=lambda *_: None)
    edited = editing.noised(network, 0 * drawn, strength=0.999, seed=1) / seen[0]
    assert edited.std() > 0.1 * edited.abs().mean()  # otherwise the noise would be the same
    seen.clear()
    editing.stroke(network, 0 * drawn, strength=0.5, steps=2, solver="ddpm", repeats=2, seed=1)
    alpha = float(network.schedule.alpha(500.0))
    again = seen[3] - alpha * (network(seen[2], 0) * 0 + seen[2])  # the last state is x_0 up to a factor
    assert not torch.allclose(seen[0], again, atol=0.1)
    assert len({tuple(x.flatten().tolist()) for x in seen[:6]}) == 6


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_callback_that_ends_the_run_ends_all_repetitions(at):
    seen = []

    def end(step, t, x, x0):
        seen.append((step, x))
        if step == at:
            raise StopIteration

    x = editing.stroke(toy(), PICTURES, steps=3, repeats=3, callback=end)
    assert [step for step, _ in seen] == list(range(at + 1))
    assert torch.equal(x, seen[-1][1])


def test_noise_is_left_at_the_end_alone():
    model = toy()
    editing.stroke(model, PICTURES, steps=3, repeats=2, solver="ddim", denoise=False)
    assert model.calls == 4 + 3


def test_conditions_reach_the_network():
    labels = []

    def network(x, t, label):
        labels.append(label.tolist())
        return 0 * x

    model = Model(network, sample_shape=(1, 4, 4))
    model.__class__ = type("Conditional", (Model,), {"__call__": lambda self, x, t, label: network(x, t, label)})
    editing.stroke(model, PICTURES, steps=2, solver="ddim", condition={"label": torch.tensor([3, 1, 2])}, batch_size=2)
    assert labels == [[3, 1], [2]] * 3


def test_guidance_leads_edits():
    """With scale w, the edit equals that of a network that returns y_u + w (y_c - y_u)."""

    def network(x, t, label):
        return 0.1 * x * label.reshape(-1, 1, 1, 1)

    class Conditional(Model):
        def __call__(self, x, t, label):
            return network(x, t, label)

    given = {"steps": 3, "solver": "er-sde", "seed": 2}
    guided = ClassifierFree(Conditional(sample_shape=(1, 4, 4)), unconditional={"label": torch.tensor([0.0])}, scale=3)
    led = editing.stroke(guided, PICTURES, condition={"label": torch.tensor([1.0, 2.0, 3.0])}, **given)
    plain = Model(lambda x, t: 0.3 * x * torch.tensor([1.0, 2.0, 3.0]).reshape(-1, 1, 1, 1), sample_shape=(1, 4, 4))
    assert torch.allclose(led, editing.stroke(plain, PICTURES, **given), atol=1e-5)


def test_models_of_one_element_are_edited_too():
    model = GaussianMixture1D((0.5, 0.5), (-0.5, 0.5), (0.1, 0.1), schedule=schedules.VPLinear())
    guide = torch.full((500, 1), 0.45, dtype=torch.float64)
    few, many = (
        editing.stroke(model, guide, strength=s, steps=10, shape=(1,), clip=None, solver="gms") for s in (0.05, 0.9)
    )
    assert (
        (few > 0).double().mean() > 0.95 > (many > 0).double().mean()
    )  # at little noise the other mode is out of reach


BAD = {
    "strength above": ({"strength": 1.5}, ValueError, r'strength must lie in \[0, 1\], or be like "t=500"'),
    "strength none": ({"strength": float("nan")}, ValueError, "strength must lie in"),
    "strength text": ({"strength": "half"}, TypeError, "strength must be a number in"),
    "strength flag": ({"strength": True}, TypeError, "strength must be a number in"),
    "time outside": ({"strength": "t=1000"}, ValueError, "strength must be a whole time from 0 to 999: got 't=1000'"),
    "level outside": ({"strength": "level=1000"}, ValueError, "strength must be a level sigma/alpha from 0.01 to 157"),
    "a solver of edits": (
        {"solver": editing.Inversion(then=DDIM())},
        ValueError,
        "solver must go from more noise to less: got Inversion",
    ),
    "repeats": ({"repeats": 0}, ValueError, "repeats must be at least 1: got 0"),
    "n": ({"n": 2}, ValueError, "n must be 3, the number of images: got 2"),
    "steps": ({"steps": 0}, ValueError, "steps must be at least 1: got 0"),
    "solver": ({"solver": "no"}, ValueError, "solver must be a Solver or one of"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused_before_the_model_is_called(case):
    given, kind, message = BAD[case]
    model = toy()
    with pytest.raises(kind, match=message):
        editing.stroke(model, PICTURES, **given)
    assert model.calls == 0
