"""Wrappers of other libraries: attributes are found inside, and hidden ones cause a warning."""

import copy
import functools

import pytest
import torch
from strangers import Moments, sample, warned

from gms_fast import guidance
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


class Central(torch.nn.Module):
    """Network with exact central moments and the attributes of a velocity network."""

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
    """Wrapper of another library that shows none of its model's attributes."""

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
    assert any("no attribute `moments`, so 'raw' is assumed, but the Central inside it has" in m for m in messages)
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

    with pytest.raises(ValueError, match="this model has no attribute `schedule`; the Central inside it has VPLinear"):
        sample(Bare(), n=1)
    with pytest.raises(ValueError, match=r"shape must be given: .*`sample_shape`; the Central inside it has"):
        sample(Bare(), n=1, schedule="linear", clip=None)


def test_self_conditioning_is_refused_by_name():
    model = Central(self_condition=True)
    for wrapped in (model, torch.nn.DataParallel(model), model.forward):
        with pytest.raises(ValueError, match="model is self-conditioned"):
            sample(wrapped, n=1)


def test_guidance_without_an_unconditional_is_refused():
    with pytest.raises(ValueError, match="unconditional must be given"):
        guidance.ClassifierFree(lambda x, t, y: 0 * x, torch.zeros(1), scale=2.0, schedule="linear")
