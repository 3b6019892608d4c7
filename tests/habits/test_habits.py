"""Strangers' habits, each with the value that is right: samples are right or refused, never silently wrong.

256 samples of 192 numbers tell their standard deviation to 1 in sqrt(2 * 256 * 192) = 314, and ACCURATE is three times
that; two of them differ by sqrt(2) times as much.
"""

import copy
import functools
import itertools
import math
import types
import warnings

import numpy as np
import pytest
import torch
from strangers import MEAN, STD, Exact, Moments, N, marginal

import gms_fast
from gms_fast import guidance, ops, schedules, solvers
from gms_fast.plan import COUNTED
from gms_fast.schedules import VP, Flow, VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")

ACCURATE = 3 / math.sqrt(2 * N * 192)
TWO = math.sqrt(2) * ACCURATE


def sample(model, steps=10, **options):
    return gms_fast.sample(model, steps, **{"solver": "ddim", "n": N} | options)


def std(x):
    return float(x.std())


def noiseless(model, **options):
    """Samples by many small steps, which end at the data's own law."""
    return sample(model, **{"steps": 200, "clip": None} | options)


# 1. The last step is not the end of the picture


@pytest.mark.parametrize("solver", ["sn-ddpm", "gms"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (192,)])
@pytest.mark.parametrize("last", [300, 60, 20, 4])
def test_state_that_is_handed_on_keeps_its_noise(solver, shape, last):
    """These solvers are exact on Gaussian data; what a picture's last step may leave is no matter here."""
    times = [*(t for t in (999, 800, 600, 450, 200, 90) if t > last), last]
    x = sample(Moments(sample_shape=shape), timesteps=times, solver=solver, denoise=False)
    assert std(x) == pytest.approx(marginal(last)[1], rel=ACCURATE)


def test_ddpm_hands_on_all_but_what_its_small_variance_lacks():
    x = sample(Moments(), timesteps=[999, 800, 600, 450, 300], solver="ddpm", denoise=False)
    assert std(x) == pytest.approx(marginal(300)[1], rel=0.01 + ACCURATE)


def test_flat_data_and_pictures_are_handed_on_alike():
    times = [999, 800, 600, 450, 300]
    for solver in ("ddpm", "gms"):
        a, b = (
            sample(Moments(sample_shape=shape), timesteps=times, solver=solver, denoise=False, n=4).flatten()
            for shape in ((3, 8, 8), (192,))
        )
        assert torch.equal(a, b)


def test_finished_pictures_are_still_bounded():
    for last in (0, 1):
        draw = functools.partial(sample, Moments(), timesteps=[999, 500, 200, last], denoise=False)
        free = draw(solver=solvers.GMS(clip_pixel=None))
        assert std(free) == pytest.approx(marginal(last)[1], rel=ACCURATE)
        assert std(draw(solver="gms")) < 0.9 * std(free)


# 2. Network time


@pytest.mark.parametrize("T", [50, 300, 4000])
def test_network_is_asked_at_the_schedule_s_own_times(T):
    betas = torch.linspace(0.1 / T, 20 / T, T)
    wanted = [*(T - 1 - T // 5 * i for i in range(5)), 0]
    for rescale, scale in ((None, 1), (False, 1), (True, 1000 / T)):
        model = Moments(schedule=VP(betas, rescale_time=rescale))
        x = sample(model, 5, solver=solvers.SNDDPM(clip_pixel=None), denoise=False)
        assert std(x) == pytest.approx(marginal(0, schedule=model.schedule)[1], rel=ACCURATE)
        sample(model, 5, n=1)
        assert model.asked[-6:] == pytest.approx([t * scale for t in wanted])


def test_model_s_word_on_its_time_holds_for_a_schedule_that_says_nothing():
    model = Exact(schedule=VPLinear(rescale_time=True))
    sample(model, 5, n=1, schedule=VPLinear(T=500))
    assert model.asked[:2] == [998, 798]
    model = Exact(schedule=Flow(time_scale=1000.0), form="flow")
    sample(model, 4, n=1, schedule=Flow(shift=2.0))
    assert model.asked[0] == 1000


def test_flow_network_that_takes_thousandths():
    schedule = Flow(time_scale=1000)
    x = noiseless(Exact(schedule=schedule, form="flow"), steps=100)
    assert float(x.mean()) == pytest.approx(MEAN, abs=STD * TWO)
    assert std(x) == pytest.approx(STD, rel=0.05)


@pytest.mark.parametrize("named", [True, False])
def test_flow_network_of_diffusers_kind_is_asked_in_thousandths(named):
    """Without a word on its time: `wrap` knows the kind. Its output is packed, as there."""
    exact = Exact(schedule=Flow(time_scale=1000), form="flow")

    def by_place(x, t):
        return {"sample": exact(x, t)}

    def by_name(hidden_states, timestep, return_dict=True):
        velocity = exact(hidden_states, timestep)
        return types.SimpleNamespace(sample=velocity) if return_dict else (velocity,)

    model = gms_fast.models.wrap(by_name if named else by_place, "diffusers", schedule=Flow(), prediction="flow")
    options = {"shape": (3, 8, 8), "clip": None}
    x = sample(model, 100, **options)
    assert (exact.asked[0], exact.asked[-1]) == (1000, 10)
    assert float(x.mean()) == pytest.approx(MEAN, abs=STD * TWO)
    assert std(x) == pytest.approx(STD, rel=0.05)
    assert torch.equal(sample(model, 100, schedule=Flow(), **options), x)


class Table(torch.nn.Module):
    """The exact network, with its levels in a table that is looked up by time."""

    sample_shape = (3, 8, 8)

    def __init__(self, look_up, T=1000, schedule=None):
        super().__init__()
        levels = VPLinear(T=T) if schedule is None else schedule
        self.schedule, self.look_up = levels, look_up
        t = torch.arange(T)
        self.register_buffer("alpha", levels.alpha(t).float())
        self.register_buffer("sigma", levels.sigma(t).float())
        self.embedding = torch.nn.Embedding.from_pretrained(torch.stack([self.alpha, self.sigma], 1))

    def forward(self, x, t):
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in self.look_up(self, t))
        return sigma * (x - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2)


LOOK_UPS = {
    "indexing": lambda net, t: (net.alpha[t], net.sigma[t]),
    "embedding": lambda net, t: net.embedding(t).unbind(1),
    "gather": lambda net, t: (net.alpha.gather(0, t), net.sigma.gather(0, t)),
    "index_select": lambda net, t: (net.alpha.index_select(0, t), net.sigma.index_select(0, t)),
    "numpy": lambda net, t: tuple(torch.from_numpy(v.numpy()[t.numpy()]) for v in (net.alpha, net.sigma)),
    "long": lambda net, t: (net.alpha[t.long()], net.sigma[t.long()]),
}


@pytest.mark.parametrize("look_up", LOOK_UPS.values(), ids=LOOK_UPS)
def test_networks_that_look_times_up_get_integers(look_up):
    x = sample(Table(look_up), n=4)
    assert torch.allclose(x, sample(Exact(), n=4), atol=1e-5)


@pytest.mark.parametrize("look_up", ["indexing", "embedding", "long"])
def test_time_outside_of_a_table_is_named(look_up):
    network = Table(LOOK_UPS[look_up], T=50)
    with pytest.raises(ValueError, match=r"model failed at network time 999: .*rescale_time="):
        sample(network, n=1, schedule=VPLinear())
    with pytest.raises(ValueError, match=r"model failed at network time 980: .*rescale_time="):
        sample(network, n=1, schedule=VPLinear(T=50, rescale_time=True))


def test_fractional_times_of_a_table_are_named():
    network = Table(LOOK_UPS["indexing"], T=1000)
    with pytest.raises(ValueError, match=r"model failed at network time 999\.75: .*whole times"):
        sample(network, n=1, schedule=VPLinear(T=4000, rescale_time=True))


# 3. The data's range


def warned(*arguments, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x = sample(*arguments, **options)
    return x, [str(w.message) for w in caught]


def test_assumed_range_that_cuts_is_said_once():
    x, messages = warned(Exact(mean=0.0, std=3.0), 50)
    assert std(x) < 1
    assert len(messages) == 1
    assert "clip=(-1, 1) was assumed" in messages[0]
    assert 0.5 < int(messages[0].split("%")[0].split()[-1]) / 100 < 0.75  # of N(0, 3^2), 71 % lie beyond 1.1


@pytest.mark.parametrize("how", ["call", "model", "range"])
def test_range_that_is_said_is_kept_and_not_warned_of(how):
    model = Exact(mean=0.0, std=3.0, **({"clip": None} if how == "model" else {}))
    options = {"call": {"clip": None}, "model": {}, "range": {"clip": (-30.0, 30.0)}}[how]
    x, messages = warned(model, 200, **options)
    assert not messages
    assert std(x) == pytest.approx(3.0, rel=0.02)
    told = Exact(mean=0.0, std=3.0, clip=(-0.5, 0.5))
    assert float(sample(told, 5, n=4).abs().max()) == 0.5
    assert not warned(Exact(mean=0.0, std=3.0), 5, clip=(-1.0, 1.0))[1]  # asked for


def test_pictures_are_not_warned_of():
    assert not warned(Exact(), 20)[1]
    assert not warned(gms_fast.load("digits"), 5, n=4)[1]
    stranger = gms_fast.load("digits")
    plain = Exact()
    plain.sample_shape, plain.schedule = stranger.sample_shape, stranger.schedule
    plain.__class__ = type("Plain", (), {"__call__": lambda self, x, t: stranger(x, t).e1})
    assert not warned(plain, 20, n=16)[1]  # it overshoots [-1, 1], as every learned network does


# 4. dtypes and devices


class Dense(torch.nn.Module):
    """An exact network whose last layer is a linear one that changes nothing, of any dtype."""

    sample_shape, schedule = (12,), VPLinear()

    def __init__(self, dtype=torch.float32, first=None):
        super().__init__()
        if first is not None:
            self.first = torch.nn.Parameter(first, requires_grad=False)
        self.layer = torch.nn.Linear(12, 12, bias=False, dtype=dtype)
        self.layer.weight.data = torch.eye(12, dtype=dtype)
        self.seen = []

    def forward(self, x, t):
        self.seen.append(x.dtype)
        return self.layer(Exact()(x.float(), t).to(x.dtype))


FIRSTS = {
    "int8": torch.zeros(3, dtype=torch.int8),
    "uint8": torch.zeros(3, dtype=torch.uint8),
    "bool": torch.zeros(3, dtype=torch.bool),
    "float8": torch.zeros(3).to(torch.float8_e4m3fn),
    "bfloat16": torch.zeros(3, dtype=torch.bfloat16),
    "float64": torch.zeros(3, dtype=torch.float64),
}


@pytest.mark.parametrize("first", FIRSTS.values(), ids=FIRSTS)
def test_first_parameter_is_no_measure_of_the_rest(first):
    want = sample(Dense(), n=8)
    got = sample(Dense(first=first), n=8)
    assert got.dtype == torch.float32
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("first", [torch.float32, torch.float64])
def test_layer_may_be_narrower_than_the_first_parameter(first):
    model = Dense(torch.bfloat16, first=torch.zeros(3, dtype=first))
    got = sample(model, n=8)
    assert model.seen[-1] == torch.bfloat16
    assert (got - sample(Dense(), n=8)).abs().max() < 0.05  # bfloat16 outputs
    assert got.dtype == torch.float32


def test_model_says_its_dtype_where_parameters_do_not():
    model = Dense(first=FIRSTS["float8"])
    model.layer.weight.data = model.layer.weight.data.to(torch.float8_e4m3fn)
    model.forward = lambda x, t: (
        Dense.forward(model, x, t)
        if x.dtype == torch.float8_e4m3fn
        else torch.nn.functional.linear(Exact()(x.float(), t).to(x.dtype), model.layer.weight.to(x.dtype))
    )
    model.dtype = torch.bfloat16  # of its arithmetic, as under layerwise casting
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    sample(model, n=2)
    assert set(seen) == {torch.bfloat16}
    model.dtype = torch.float8_e4m3fn  # of its storage
    seen.clear()
    sample(model, n=2)
    assert set(seen) == {torch.float32}


def test_autocast_casts_by_itself():
    model = Dense()
    with torch.autocast("cpu", torch.bfloat16):
        x = sample(model, n=8)
    assert set(model.seen) == {torch.float32}
    assert x.dtype == torch.float32
    assert (x - sample(Dense(), n=8)).abs().max() < 0.05


def test_dtype_that_no_parameter_has_is_refused_by_name():
    class Stubborn(Dense):
        def forward(self, x, t):
            return torch.mm(x.to(torch.float16), torch.eye(12, dtype=torch.float64)).to(x.dtype)

    with pytest.raises(ValueError, match=r"model takes x in none of torch.float64, torch.float32.*autocast"):
        sample(Stubborn(first=torch.zeros(3, dtype=torch.float64)), n=1)


def test_errors_of_the_network_itself_come_through():
    class Broken(Dense):
        def forward(self, x, t):
            raise RuntimeError("out of patience")

    with pytest.raises(RuntimeError, match="out of patience"):
        sample(Broken(first=torch.zeros(3, dtype=torch.bfloat16)), n=1)


def test_offloaded_parameters_ask_for_a_device():
    model = Dense()
    model.offloaded = torch.nn.Linear(2, 2, device="meta")
    first = torch.nn.Sequential(model.offloaded, model)
    first.forward = model.forward
    first.sample_shape, first.schedule = model.sample_shape, model.schedule
    with pytest.raises(ValueError, match="device must be given: the model's parameters are offloaded"):
        sample(first, n=1)
    assert sample(first, n=2, device="cpu").shape == (2, 12)


@pytest.mark.parametrize("layer", [torch.nn.Dropout(0.1), torch.nn.BatchNorm1d(12), torch.nn.Dropout(0.0)])
def test_training_mode_is_said_where_it_changes_samples(layer):
    model = torch.nn.Sequential(Dense())
    model.append(layer)
    model.forward = lambda x, t: model[1](model[0](x, t))
    model.sample_shape, model.schedule, model.clip = Dense.sample_shape, Dense.schedule, None
    acts = not isinstance(layer, torch.nn.Dropout) or layer.p > 0
    assert any("training mode" in m for m in warned(model.train(), 3, n=4)[1]) == acts
    assert not warned(model.eval(), 3, n=4)[1]


# 5. Wrappers


class Central(torch.nn.Module):
    """Exact central moments and a velocity network's attributes, to be hidden."""

    def __init__(self, **attributes):
        super().__init__()
        self.weight, self.inner = torch.nn.Parameter(torch.ones(1)), Moments()
        self.sample_shape, self.schedule, self.moments, self.clip = (3, 8, 8), VPLinear(), "central", None
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x, t):
        return self.inner(x, t)


TRANSPARENT = {
    "DataParallel": torch.nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "partial": lambda model: functools.partial(model),
    "method": lambda model: model.forward,
    "decorated": lambda model: torch.no_grad()(model.forward),
    "both": lambda model: functools.partial(torch.nn.DataParallel(model)),
}


@pytest.mark.parametrize("wrap", TRANSPARENT.values(), ids=TRANSPARENT)
def test_torch_s_own_wrappers_hide_nothing(wrap):
    model = Central()
    model.inner = copy.deepcopy(model.inner)
    x, messages = warned(wrap(model), 4, n=4, solver="gms")
    assert not [m for m in messages if "assumed" in m]
    assert torch.allclose(x, sample(model, 4, n=4, solver="gms"), atol=1e-6)


def test_distributed_wrapper_hides_nothing(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = Central()
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        assert torch.equal(sample(wrapped, 3, n=2, solver="gms"), sample(model, 3, n=2, solver="gms"))
    finally:
        torch.distributed.destroy_process_group()


class Ema(torch.nn.Module):
    """A stranger's wrapper that shows nothing of its model."""

    sample_shape, schedule = (3, 8, 8), VPLinear()

    def __init__(self, model):
        super().__init__()
        self.ema_model = model

    def forward(self, x, t):
        return self.ema_model(x, t)


def closed_over(model):
    def asked(x, t):
        return model(x, t)

    asked.sample_shape, asked.schedule = Ema.sample_shape, Ema.schedule
    return asked


class Holder:
    sample_shape, schedule = Ema.sample_shape, Ema.schedule

    def __init__(self, model):
        self.model = model

    def __call__(self, x, t):
        return self.model(x, t)


@pytest.mark.parametrize("hide", [Ema, closed_over, Holder, lambda model: Ema(Ema(model))])
def test_what_a_stranger_s_wrapper_hides_is_said(hide):
    _, messages = warned(hide(Central()), 4, n=2, solver="gms")
    assert any("no attribute `moments`, so 'raw' is assumed, but the Central in it has" in m for m in messages)
    assert any("no attribute `clip`" in m and "has clip = None" in m for m in messages)
    _, messages = warned(hide(Central(prediction="v")), 4, n=2, solver="ddim")
    assert any("no attribute `prediction`, so 'noise' is assumed" in m for m in messages)
    _, messages = warned(hide(Central(prediction="v")), 4, n=2, solver="ddim", prediction="noise", clip=None)
    assert not any("prediction" in m or "clip" in m for m in messages)


def test_missing_attribute_is_looked_for_inside():
    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Central()

    with pytest.raises(ValueError, match="this model has no attribute `schedule`; the Central in it has VPLinear"):
        sample(Bare(), n=1)
    with pytest.raises(ValueError, match=r"shape must be given: .*`sample_shape`; the Central in it has \(3, 8, 8\)"):
        sample(Bare(), n=1, schedule="linear", clip=None)


# 6. Writing to what is only lent


def writes(how):
    def network(x, t):
        e = Exact()(x.clone(), t)
        how(x)
        return e

    return network


WRITES = {
    "mul_": lambda x: x.mul_(7),
    "index": lambda x: x.__setitem__(0, 5.0),
    "view": lambda x: x.flatten().add_(1),
    "numpy": lambda x: x.numpy().__imul__(3),
    "data": lambda x: x.data.zero_(),
}


@pytest.mark.parametrize("how", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm-solver++"])
def test_network_that_writes_to_its_input_is_harmless(how, solver):
    x_T = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = x_T.clone()
    options = {"x_T": x_T, "schedule": "linear", "solver": solver}
    got = sample(writes(how), 5, **options)
    assert torch.equal(x_T, before)
    assert torch.equal(got, sample(Exact(), 5, **options))


def test_network_that_writes_later_is_refused():
    calls = []

    def network(x, t):
        calls.append(t)
        if len(calls) == 3:
            x.zero_()
        return 0 * x

    with pytest.raises(ValueError, match="model wrote to what it was given"):
        sample(network, 5, n=2, shape=(4,), schedule="linear")


def test_network_that_writes_to_its_condition_is_refused():
    def network(x, t, y):
        y.add_(1)
        return 0 * x

    with pytest.raises(ValueError, match="model wrote to what it was given"):
        sample(network, 5, n=2, shape=(4,), schedule="linear", condition={"y": torch.zeros(2)})


def test_network_may_write_to_its_output_again():
    """As one in a CUDA graph does: histories must not change with it."""
    model, buffer = Exact(form="x0"), torch.empty(4, 3, 8, 8)

    def reused(x, t):
        return buffer.copy_(model(x, t))

    options = {"n": 4, "shape": (3, 8, 8), "schedule": "linear", "prediction": "x0", "clip": None}
    for solver in ("dpm-solver++", "unip", "er-sde", "ddim"):
        got = sample(reused, 6, solver=solver, **options)
        want = sample(model, 6, solver=solver, **options)
        buffer.zero_()
        assert torch.equal(got, want)


@pytest.mark.parametrize("how", ["mul_", "index", "view"])
def test_callback_that_writes_is_refused(how):
    x_T = torch.randn(4, 3, 8, 8)
    before = x_T.clone()
    with pytest.raises(ValueError, match="callback wrote to x in place, which changes nothing: return the new state"):
        sample(Exact(), 5, x_T=x_T, callback=lambda i, t, x, x_0: WRITES[how](x))
    assert torch.equal(x_T, before)


@pytest.mark.parametrize("how", ["numpy", "data"])
def test_callback_s_hidden_writes_are_harmless(how):
    x_T = torch.randn(4, 3, 8, 8)
    want = sample(Exact(), 5, x_T=x_T)
    got = sample(Exact(), 5, x_T=x_T, callback=lambda i, t, x, x_0: [WRITES[how](v) for v in (x, x_0)])
    assert torch.equal(got, want)


def test_inference_mode():
    with torch.inference_mode():
        x_T = torch.randn(4, 3, 8, 8)
        before = x_T.clone()
        got = sample(writes(WRITES["mul_"]), 5, x_T=x_T, schedule="linear")
        assert torch.equal(x_T, before)
        assert torch.equal(got, sample(Exact(), 5, x_T=x_T))


# 7. Noise of a second stage


@pytest.mark.parametrize(("mean", "spread"), [(0.3, 0.2), (0.0, 1.0)])
@pytest.mark.parametrize("offset", [0, 10])
@pytest.mark.parametrize("solver", ["er-sde", "ddpm", "gms"])
def test_second_stage_draws_new_noise(mean, spread, offset, solver):
    model = Moments(mean=mean, std=spread, clip=None)
    times = [999 - round(99.9 * i / 2) for i in range(21)]
    half = times.index(min(times, key=lambda t: abs(t - 500)))
    draw = functools.partial(sample, model, solver=solver)
    whole = draw(timesteps=times)
    x = draw(timesteps=times[: half + 1], denoise=False)
    y = draw(timesteps=times[half:], x_T=x, step_offset=offset and half)
    assert std(y) == pytest.approx(std(whole), rel=TWO)
    if offset and solver != "er-sde":  # which has a history
        assert torch.equal(y, whole)


def test_noise_follows_the_level_wherever_a_run_starts():
    model, x_T = Moments(clip=None), torch.randn(4, 3, 8, 8)
    one = sample(model, timesteps=[500, 400, 300, 200], x_T=x_T, solver="ddpm", denoise=False)
    first = sample(model, timesteps=[500, 400, 300], x_T=x_T, solver="ddpm", denoise=False)
    assert torch.equal(sample(model, timesteps=[300, 200], x_T=first, solver="ddpm", denoise=False), one)


def test_user_s_noise_is_no_step_s():
    """Of img2img: what a picture was noised with is not what the first step adds."""
    noises = [ops.philox_normal((4, 3, 8, 8), seed=0, step=step) for step in range(3)]
    drawn = []
    for options in ({}, {"x_T": torch.zeros(4, 3, 8, 8), "timesteps": [500, 400, 300]}):

        def first(i, t, x, x_0, drawn=drawn, options=options):
            if i == 1:
                drawn.append(x)
                raise StopIteration

        sample(lambda x, t: 0 * x, n=4, shape=(3, 8, 8), schedule="linear", solver="ddpm", callback=first, **options)
    for x, noise in itertools.product(drawn, noises):
        correlation = float(torch.corrcoef(torch.stack([x.flatten(), noise.flatten()]))[0, 1])
        assert abs(correlation) < 5 / math.sqrt(noise.numel())


# 8. Grid ends


@pytest.mark.parametrize("schedule", ["linear", "cosine", "vp"])
@pytest.mark.parametrize(("solver", "errors"), [("unip", {10: 0.06, 20: 0.03}), ("dpm-solver++", {10: 0.15, 20: 0.06})])
def test_multistep_solvers_end_near_the_data(schedule, solver, errors):
    """Over 20 uniform times of the linear schedule they ended 50 and 25 % too wide."""
    for steps, error in errors.items():
        x = sample(Exact(schedule=schedules.build(schedule)), steps, solver=solver, clip=None)
        assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
        assert std(x) == pytest.approx(STD, rel=error + ACCURATE)


def test_no_extrapolation_over_the_last_jump():
    """On uniform times UniP's last step is of order 1: the error is that of DDIM there, on the side of too little."""
    times = VPLinear().timesteps(20)
    x = sample(Exact(), timesteps=times, solver="unip", clip=None)
    assert 0.75 * STD < std(x) < STD
    full = sample(Exact(), timesteps=times, solver=solvers.UniP(lower_order_final=False), clip=None)
    assert std(full) > 1.4 * STD


@pytest.mark.parametrize("solver", [solvers.UniP(), solvers.DPMSolverPP(), solvers.DPMSolverPP(order=3, sde=True)])
def test_multistep_grids_do_not_jump(solver):
    """No step is more than twice as long in log(alpha/sigma) as the one before, from ten steps on."""
    for schedule in (VPLinear(), schedules.VPCosine(), schedules.VPContinuous()):
        for steps in (10, 20, 50):
            times = solver.times(schedule, steps)
            lengths = schedule.log_snr(times).diff()
            assert len(times) == steps + 1
            assert float((lengths[1:] / lengths[:-1])[steps // 2 :].max()) < 2


def test_grids_that_were_chosen_are_kept():
    for solver in (solvers.UniP(), solvers.DPMSolverPP(), solvers.GMS()):
        shifted = Flow(0.999, 0.001, shift=3.0)
        assert solver.times(shifted, 5) == shifted.timesteps(5)
    assert solvers.UniP().times(schedules.EDM(), 5) == schedules.EDM().timesteps(5)
    assert solvers.DPMSolverPP(order=1).times(VPLinear(), 5) == VPLinear().timesteps(5)
    assert solvers.UniP().times(VPLinear(), [999, 500, 0]) == [999, 500, 0]


# 9. No step vanishes


@pytest.mark.parametrize(("steps", "schedule", "spacing"), [(20, "cosine", "karras"), (500, "linear", "log-snr")])
def test_every_step_is_a_call(steps, schedule, spacing):
    times = schedules.build(schedule).timesteps(steps, spacing=spacing)
    model = Exact(schedule=schedules.build(schedule))
    sample(model, timesteps=times, n=1)
    assert len(model.asked) == len(set(model.asked)) == steps + 1


def test_a_thousand_steps_are_plain_ddpm():
    model = Exact()
    x = sample(model, 1000, solver="ddpm", n=8)
    assert model.asked == list(range(999, -1, -1))
    assert torch.equal(sample(model, timesteps=range(999, -1, -1), solver="ddpm", n=8), x)
    sample(model, 999, solver="ddpm", n=1)
    assert model.asked[2000:] == list(range(999, -1, -1))


# 10. What a network needs is refused by name


def test_self_conditioning_is_refused_by_name():
    model = Central(self_condition=True)
    for wrapped in (model, torch.nn.DataParallel(model), model.forward):
        with pytest.raises(ValueError, match="model is self-conditioned"):
            sample(wrapped, n=1)


def test_guidance_without_an_unconditional_is_refused():
    with pytest.raises(ValueError, match="unconditional must be given"):
        guidance.ClassifierFree(lambda x, t, y: 0 * x, torch.zeros(1), scale=2.0, schedule="linear")


# 12. ER-SDE's integral


def test_er_sde_takes_as_many_points_as_a_host():
    """Its sum is a left Riemann sum: the error halves with twice the points."""
    model = Exact(clip=None)
    draw = functools.partial(sample, model, timesteps=[999, 700, 400, 200, 50], n=8)
    exact = draw(solver=solvers.ERSDE(quadrature="exact", variance_clip=1e-6))
    errors = [float((draw(solver=solvers.ERSDE(points=points)) - exact).norm()) for points in (100, 200, 400)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)
    with pytest.raises(ValueError, match="points must be an integer of at least 1: got 0"):
        solvers.ERSDE(points=0)


# Crashes and unclear words


def test_noise_without_uniforms():
    z = [ops.philox_normal((4, 3, 8, 8), seed=0, step=COUNTED + i) for i in range(6)]
    model = Moments()
    for solver in ("gms", solvers.GMS(fit="exact", component="sample"), "ddpm", "er-sde"):
        got = sample(model, 5, solver=solver, n=4, noise=lambda i: (z[i], None))
        assert torch.equal(got, sample(model, 5, solver=solver, n=4))


@pytest.mark.parametrize("seed", [np.int64(7), np.uint8(7), np.array(7)])
def test_numpy_seeds(seed):
    assert torch.equal(sample(Exact(), 3, n=2, seed=seed), sample(Exact(), 3, n=2, seed=7))
    several = np.array([3, 4])
    assert torch.equal(sample(Exact(), 3, n=2, seed=several), sample(Exact(), 3, n=2, seed=[3, 4]))


@pytest.mark.parametrize("solver", [*solvers.names(), "dpm-solver-v3", "teleport", "gms with covariance"])
def test_default_device_of_the_user(solver):
    """Numbers that belong to the CPU stay there; `meta` has none and fails at once."""
    model = gms_fast.load("digits")
    gaussian = gms_fast.statistics.load_gaussian("digits")
    made = {
        "dpm-solver-v3": lambda: solvers.DPMSolverV3(gms_fast.statistics.load("digits"), trust=-2),
        "teleport": lambda: solvers.Teleport(gaussian, until=5, then=solvers.ERSDE()),
        "gms with covariance": lambda: solvers.GMS(covariance=gaussian),
    }
    build = made.get(solver, lambda: solver)
    want = sample(model, 4, n=2, solver=build())
    with torch.device("meta"):
        got = sample(model, 4, n=2, solver=build())
        x = sample(Exact(schedule=VPLinear()), 4, n=2, device="cpu", x_T=None) if solver == "ddim" else None
    assert torch.equal(got, want)
    assert x is None or x.device.type == "cpu"


def zero_terminal():
    betas = VPLinear().betas.clone()
    betas[-1] = 1
    return VP(betas)


@pytest.mark.parametrize("form", ["v", "x0"])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm-solver++", "unip", "er-sde"])
def test_zero_terminal_snr(form, solver):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = sample(Exact(schedule=zero_terminal(), form=form), 200, solver=solver, clip=None)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert std(x) == pytest.approx(STD, rel=0.1)


def test_zero_terminal_snr_is_refused_where_nothing_tells_the_data():
    with pytest.raises(ValueError, match="prediction must be one of x0, v, flow where timesteps start at alpha = 0"):
        sample(Exact(schedule=zero_terminal()), 5)
    for solver in ("gms", "sn-ddpm"):
        with pytest.raises(ValueError, match=f"timesteps must start where alpha > 0 for {'GMS|SNDDPM'}"):
            sample(Exact(schedule=zero_terminal(), form="v"), 5, solver=solver)


@pytest.mark.parametrize("solver", solvers.names())
def test_one_time_is_one_call(solver):
    model = Moments()
    x_T = torch.randn(4, 3, 8, 8)
    x = sample(model, timesteps=[999], solver=solver, x_T=x_T)
    assert model.asked == [999]
    alpha, sigma = float(VPLinear().alpha(999)), float(VPLinear().sigma(999))
    e1 = model(x_T, torch.tensor([999.0])).e1
    assert torch.allclose(x, ((x_T - sigma * e1) / alpha).clamp(-1, 1), atol=1e-3)
    assert torch.equal(sample(model, timesteps=[999], solver=solver, x_T=x_T, denoise=False), x_T)


def test_nothing_is_warned_of_at_alpha_zero():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for solver in ("ddim", "dpm-solver++", "unip", "er-sde", "ddpm"):
            sample(Exact(schedule=Flow(), form="flow"), 5, n=2, solver=solver)


# What is expected of a sampler


def test_batch_size_changes_no_sample():
    model = Moments()
    for solver in ("gms", "ddpm", "dpm-solver++"):
        want = sample(model, 4, n=7, solver=solver)
        model.asked.clear()
        assert torch.equal(sample(model, 4, n=7, solver=solver, batch_size=3), want)
        assert len(model.asked) == 3 * 5


def test_condition_is_split_with_the_batch():
    seen = []

    def network(x, t, y, extra, flag):
        seen.append((len(x), len(y), len(extra["w"]), len(extra["one"]), flag))
        return y.view(-1, 1) * torch.ones_like(x)

    y = torch.arange(5.0) / 10
    condition = {"y": y, "extra": {"w": y, "one": torch.zeros(1, 9)}, "flag": "a"}
    options = {"schedule": "linear", "shape": (4,), "n": 5, "condition": condition, "clip": None}
    want = sample(network, 3, **options)
    assert torch.equal(sample(network, 3, batch_size=2, **options), want)
    assert set(seen) == {(5, 5, 5, 1, "a"), (2, 2, 2, 1, "a"), (1, 1, 1, 1, "a")}
    assert len(want[:, 0].unique()) == 5


def test_denoise_says_whether_the_last_noise_goes():
    model = Exact(clip=None)
    for solver in ("ddim", "er-sde", "dpm-solver++", solvers.Teleport(GAUSSIAN, 10, solvers.ERSDE())):
        model.asked.clear()
        left = sample(model, timesteps=[999, 600, 300, 100], solver=solver, denoise=False)
        assert model.asked[-1] == 300
        gone = sample(model, timesteps=[999, 600, 300, 100], solver=solver, denoise=True)
        assert model.asked[-1] == 100
        assert std(left) > std(gone)


GAUSSIAN = gms_fast.statistics.gaussian(
    0.3 + 0.2 * torch.randn(500, 3, 8, 8, generator=torch.Generator().manual_seed(0))
)


def test_callback_may_return_the_state():
    """It takes the place of x in the step; what the network said stays."""
    seen = []

    def shifted(i, t, x, x_0):
        seen.append((x, x_0))
        return x + 1 if i == 1 else None

    model = Exact(clip=None)
    x = sample(model, timesteps=[999, 500, 100], callback=shifted, n=2, denoise=False)
    (x_1, _), k = seen[1], gms_fast.StepCoefficients.between(VPLinear(), 500, 100)
    e = model(x_1, torch.tensor([500.0]))
    moved = (x_1 + 1 - k.sigma_t * e) / k.alpha_t
    assert torch.allclose(x, k.alpha_s * moved + k.sigma_s * e, atol=1e-5)
    with pytest.raises(ValueError, match=r"callback must return a tensor like x, \(2, 3, 8, 8\): got \(2,\)"):
        sample(model, 3, n=2, callback=lambda i, t, x, x_0: torch.zeros(2))


def test_callback_may_end_the_run_and_it_is_continued():
    model = Moments()
    times = [999, 800, 600, 400, 200, 0]

    def until(last):
        def callback(i, t, x, x_0):
            if t == last:
                raise StopIteration

        return callback

    for solver in ("gms", "ddpm"):
        whole = sample(model, timesteps=times, solver=solver, n=4)
        state = sample(model, timesteps=times, solver=solver, n=4, callback=until(400))
        rest = sample(model, timesteps=times[3:], x_T=state, step_offset=3, solver=solver)
        assert torch.equal(rest, whole)
