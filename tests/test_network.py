"""Networks of other libraries: their network times, dtypes and writes to the input."""

import dataclasses
import types

import pytest
import torch
from strangers import ACCURATE, MEAN, STD, TWO, Exact, Moments, marginal, sample, std, warned

import gms_fast
from gms_fast import solvers
from gms_fast.schedules import VP, Flow, VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


def noiseless(model, **options):
    """Draw samples in many small steps, which end at the data's own distribution."""
    return sample(model, **{"steps": 200, "clip": None} | options)


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
    """`wrap` knows the network times of this kind; the output is packed, as in diffusers."""
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
    """Exact network that looks its noise levels up in a table by time."""

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
    with pytest.raises(ValueError, match=r"model failed at network time 999\.75: .*integer times"):
        sample(network, n=1, schedule=VPLinear(T=4000, rescale_time=True))


class Dense(torch.nn.Module):
    """Exact network whose last layer is a linear identity of any dtype."""

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
    model.dtype = torch.bfloat16  # dtype of the arithmetic, as under layerwise casting
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    sample(model, n=2)
    assert set(seen) == {torch.bfloat16}
    model.dtype = torch.float8_e4m3fn  # dtype of the storage
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

    with pytest.raises(ValueError, match=r"model accepts x in none of torch.float64, torch.float32.*autocast"):
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

    with pytest.raises(ValueError, match="model modified its input"):
        sample(network, 5, n=2, shape=(4,), schedule="linear")


def test_network_that_writes_to_its_condition_is_refused():
    def network(x, t, y):
        y.add_(1)
        return 0 * x

    with pytest.raises(ValueError, match="model modified its input"):
        sample(network, 5, n=2, shape=(4,), schedule="linear", condition={"y": torch.zeros(2)})


def test_network_may_write_to_its_output_again():
    """A network in a CUDA graph reuses its output's memory; histories must not change with it."""
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
    with pytest.raises(ValueError, match="callback modified x in place, which has no effect: return the new state"):
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


def test_model_may_be_equal_by_value_and_have_no_hash():
    @dataclasses.dataclass
    class Scaled:
        factor: float = 0.9

        def __call__(self, x, t):
            return self.factor * x

    x = gms_fast.sample(Scaled(), 3, solver="ddim", n=2, shape=(4,), schedule=VPLinear(), clip=(-1, 1))
    assert x.isfinite().all()
