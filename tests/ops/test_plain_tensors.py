"""The compiled module's inspection of tensors: those it accepts at once, on any torch."""

import pytest
import torch

from gms_fast import ops
from gms_fast.ops import native
from gms_fast.ops.checks import checked_fit
from gms_fast.schedules import VPLinear
from gms_fast.steps import StepCoefficients

pytestmark = pytest.mark.skipif(not native.available, reason="the compiled module was not built (GMS_FAST_PURE=1)")

X = torch.rand(2, 3, 4)
TABLE = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")


@pytest.mark.skipif(not TABLE, reason="this torch tells nothing about a tensor in one call")
@pytest.mark.parametrize(
    "tensors",
    [
        (X, X),
        (X, X.bfloat16(), X.half()),
        (X[1:], X[:1]),
        (torch.rand(3),),
        (torch.rand(2, 1).expand(2, 1),),
    ],
)
def test_plain_tensors_are_alike(tensors):
    assert native.alike(tensors) == len(tensors[0])


UNLIKE = {
    "shape": (X, X[:1]),
    "dimensions": (X, X.flatten(1)),
    "scalar": (torch.tensor(1.0),),
    "no samples": (torch.rand(0, 3), torch.rand(0, 3)),
    "no elements": (torch.rand(2, 0), torch.rand(2, 0)),
    "dtype": (X, X.double()),
    "integers": (X.int(),),
    "complex": (torch.complex(X, X),),
    "layout": (X, X.transpose(1, 2).contiguous().transpose(1, 2)),
    "expanded": (X, X[:, :, :1].expand(2, 3, 4)),
    "negative bit": (X, torch._neg_view(X)),
    "gradient": (X, X.clone().requires_grad_()),
    "parameter": (torch.nn.Parameter(X, requires_grad=False),),
    "device": (X, X.to("meta")),
    "sparse": (X[0].to_sparse(),),
    "none": (X, None),
    "no tensor": (X, 3.0),
    "nothing": (),
}


@pytest.mark.parametrize("tensors", UNLIKE.values(), ids=UNLIKE)
def test_unusual_tensors_are_left_to_the_other_checks(tensors):
    assert not native.alike(tensors)


def test_wrapped_tensors_are_left_to_the_dispatcher():
    seen = []
    torch.func.vmap(lambda t: (seen.append(native.alike((t,))), t)[1])(X)
    assert seen == [0]


STEP = StepCoefficients.between(VPLinear(), 400, 300)
CALLS = {
    "gms_step": lambda x, **o: ops.gms_step(x, X, X.half(), X, STEP, **o),
    "gms_step of the released moments": lambda x, **o: ops.gms_step(x, X, X, X, STEP, moments="released", **o),
    "gaussian": lambda x, **o: ops.gms_step(x, X, None, None, STEP, fit="gaussian", **o),
    "sample_mixture": lambda x, step_index=0, **o: ops.sample_mixture(x, X, X, 0.1, step=step_index, **o),
    "affine_noise": lambda x, component=None, **o: ops.affine_noise(x, [X.bfloat16(), X], [0.5, 2.0, 1.0], 0.1, **o),
    "linear_step": lambda x, component=None, **o: ops.linear_step(
        x, X.bfloat16(), [X], [0.5, 2.0, 1.0], 0.1, data=(0.5, -1.0), unconditional=X, guidance=2.0, **o
    )[0],
}
DRAWS = [
    {},
    {"seed": -3, "step_index": (1 << 32) - 1, "sample_offset": (1 << 56) - 2},
    {"seed": (1 << 64) - 1, "component": "element"},
    {"seed": True, "step_index": True},
    {"seed": torch.tensor([3, 4]), "step_index": torch.tensor(2)},
    {"noise": torch.ones(2, 3, 4)},
]


@pytest.fixture
def looked_closer(monkeypatch):
    """A function that runs a call with every check made in Python."""

    def looked_closer(call):
        with monkeypatch.context() as patch:
            patch.setattr(ops.fused, "_at_once", lambda *_: None)
            return call()

    return looked_closer


@pytest.mark.parametrize("draws", DRAWS, ids=str)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_one_call_gives_what_a_closer_look_gives(call, draws, looked_closer):
    for x in (X, X.half(), X.double(), X.transpose(1, 2).contiguous().transpose(1, 2)):
        got, want = call(x, **draws), looked_closer(lambda x=x: call(x, **draws))
        assert torch.equal(got, want)
        assert (got.dtype, got.stride()) == (want.dtype, want.stride())


def test_plain_calls_take_one_call(monkeypatch):
    monkeypatch.setattr(ops.fused, "checked_draws", None)  # of the closer look
    for call in CALLS.values():
        assert isinstance(call(X, seed=3, step_index=2, sample_offset=5), torch.Tensor)


LINEAR = ("affine_noise", "linear_step")  # which pick no component
WRONG_COUNTERS = [
    ({"step_index": -1}, "step index must lie"),
    ({"step_index": 1 << 32}, "step index must lie"),
    ({"step_index": 1 << 70}, "step index must lie"),
    ({"sample_offset": -1}, "sample_offset must lie"),
    ({"sample_offset": (1 << 56) - 1}, "sample_offset must lie"),
]
WRONG = [(name, *case) for name in CALLS for case in WRONG_COUNTERS]
WRONG += [(name, {"component": "pixel"}, "component must be") for name in CALLS if name not in LINEAR]


@pytest.mark.parametrize(("name", "draws", "message"), WRONG)
def test_wrong_draws_are_named(name, draws, message):
    with pytest.raises(ValueError, match=message):
        CALLS[name](X, **draws)


STRIDED = ("layout", "expanded")  # which one call takes as they lie


@pytest.mark.parametrize("tensors", [given for kind, given in UNLIKE.items() if kind not in STRIDED])
def test_unusual_tensors_make_nothing_at_once(tensors):
    draws, threads = ops.Draws(component="sample"), 1
    scheme = native.scheme(checked_fit(ops.Fit()))
    assert native.compiled.new_sample_mixture(False, threads, tensors, scheme, draws) is None


@pytest.fixture
def attributes_alone():
    """A torch without the table."""
    native.compiled.set_torch(torch, type("Tensor", (), {}), tuple(native._DTYPES))
    yield
    native.introduce(native.compiled)


@pytest.mark.usefixtures("attributes_alone")
def test_without_the_table_results_are_the_same():
    step = StepCoefficients.between(VPLinear(), 400, 300)
    strided = torch.rand(2, 3, 4, 2)[..., 0]

    def results():
        return [
            ops.gms_step(X, X.half(), strided, X.bfloat16(), step),
            ops.affine_noise(X.half(), [X], [0.5, 2.0], 0.1),
            *ops.fit_mixture(X, X, X),
            ops.philox_normal((2, 5), seed=3),
        ]

    assert not native.alike((X,))
    got = results()
    native.introduce(native.compiled)
    assert all(torch.equal(g, w) for g, w in zip(got, results(), strict=True))


def test_a_tensor_without_data_is_an_error():
    empty = torch.empty(2, 3, device="meta")
    with pytest.raises((RuntimeError, ValueError, BufferError)):
        native.compiled.philox(False, 1, (empty,), None, (0, 0, False, 0, 0, 0, 0, 0, True), 0, True)
