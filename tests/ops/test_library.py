"""The ops as PyTorch registers them: schemas, fakes, compilation, transforms, no gradients."""

import pytest
import torch
from op_inputs import DTYPES, LAYOUTS, STEP, by_element, gms_step, tensors

from gms_fast import ops

INPUTS = {
    "fit_mixture": 3,
    "sample_mixture": 3,
    "gms_step": 4,
    "gms_step_out": 4,
    "linear_step": 5,
    "affine_noise": 3,
    "affine_noise_out": 3,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", INPUTS)
def test_op_passes_opcheck(op, layout, dtype):
    arguments, options = tensors(INPUTS[op], dtype, layout), {}
    if op.startswith("gms_step"):
        arguments.append(STEP.as_list())
    if op.startswith("affine_noise"):
        arguments = [arguments[0], arguments[1:], [0.5, -2.0, 0.25], 0.3]
    if op == "linear_step":
        arguments = [*arguments[:3], arguments[3:], [0.5, -2.0, 3.0, -1.0, 1.0], [0.5, -2.0, 0.25, 0.1, 0.3]]
        options = {"keeps": True, "noisy": True}
    if op.endswith("_out"):
        options["out"] = torch.empty_like(arguments[0])
    torch.library.opcheck(getattr(torch.ops.gms_fast, op).default, tuple(arguments), options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["philox_normal", "philox_uniform"])
def test_philox_passes_opcheck(op, dtype):
    for shape, seeds in (([2, 3, 5], None), ([2, 5], torch.tensor([1, 2])), ([0, 5], None)):
        options = {"dtype": dtype, "seeds": seeds}
        torch.library.opcheck(getattr(torch.ops.gms_fast, op).default, (shape,), options)


def test_compiled_function_equals_eager():
    def update(x, e):
        x_s = gms_step(x, e, e * e + 0.5, e**3, seed=3, step_index=1)
        return x_s + ops.philox_normal(x.shape, seed=4)

    x, e = tensors(2)
    compiled = torch.compile(update, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, e), update(x, e))


def test_negative_bit_is_resolved():
    x, e1, e2, e3 = tensors(4)
    for negated in (torch.complex(e1, -x).conj().imag, torch._neg_view(-x)):
        assert negated.is_neg()
        assert torch.equal(gms_step(negated, e1, e2, e3), gms_step(x, e1, e2, e3))
        assert torch.equal(gms_step(e1, e1, e2, e3, noise=negated), gms_step(e1, e1, e2, e3, noise=x))
        with pytest.raises(ValueError, match="out must not be a lazy negation"):
            gms_step(x, e1, e2, e3, out=negated)


def test_writing_to_out_is_seen_by_autograd():
    x, *moments = tensors(4)
    w, out = torch.rand_like(x, requires_grad=True), torch.rand_like(x)
    y = (w * out).sum()
    gms_step(x, *moments, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    with torch.inference_mode():
        gms_step(*tensors(4), out=torch.empty(2, 3, 4, 5))


def test_numbers_that_are_tensors_are_read_at_every_call():
    mean, var, third = tensors(3)
    weight = torch.tensor(0.3)
    first = ops.fit_mixture(mean, var, third, weight=weight)
    weight.fill_(0.2)
    assert not torch.equal(ops.fit_mixture(mean, var, third, weight=weight).weight, first.weight)


def test_transforms_of_torch_func_reach_the_registered_op():
    inputs = tensors(4)
    batched = torch.func.vmap(lambda *t: gms_step(*t), randomness="same")(*(t[None] for t in inputs))
    assert torch.equal(batched[0], gms_step(*inputs))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["affine_noise", "affine_noise_out"])
def test_weights_by_element_pass_opcheck(op, dtype, layout):
    x, *terms = tensors(6, dtype, layout)
    options = {"numbers": by_element(5, x)}
    if op.endswith("_out"):
        options["out"] = torch.empty_like(x)
    torch.library.opcheck(getattr(torch.ops.gms_fast, op).default, (x, terms, [], 0.3), options)


def test_weights_by_element_compile_and_have_meta_results():
    def update(x, y, weights):
        return ops.affine_noise(x, [y, x * y], weights * 2, 0.3, seed=3) + 1

    x, y = tensors(2)
    weights = by_element(2, x)
    assert torch.equal(torch.compile(update, fullgraph=True, backend="aot_eager")(x, y, weights), update(x, y, weights))
    assert update(x.to("meta"), y.to("meta"), weights.to("meta")).shape == x.shape


def test_gradients_are_refused():
    x, *moments = tensors(4)
    x.requires_grad_()
    for call in (
        lambda: gms_step(x, *moments),
        lambda: gms_step(moments[0], x, *moments[1:], out=torch.empty(2, 3, 4, 5)),
        lambda: ops.fit_mixture(x, *moments[:2]),
        lambda: ops.sample_mixture(moments[0], moments[1], x),
    ):
        with pytest.raises(RuntimeError, match="forward only"):
            call()
        with torch.no_grad():
            call()
    assert not gms_step(x.detach(), *moments).requires_grad
