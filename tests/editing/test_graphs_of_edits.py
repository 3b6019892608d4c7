"""Edits in one graph: under torch.compile and with `graphed`, replayed or on a GPU."""

import played_graphs
import pytest
import torch

import gms_fast
from gms_fast import NoiseMoments, editing, solvers
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")]
PICTURES = torch.linspace(-1, 1, 2 * 16).reshape(2, 1, 4, 4)
LOWER = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None].expand(4, 4).contiguous()


class Net(torch.nn.Module):
    """Network that returns moments of images."""

    sample_shape, schedule, moments, clip = (1, 4, 4), VPLinear(), "central", (-1.0, 1.0)

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.9), requires_grad=False)

    def forward(self, x, t):
        late = (t / 1000).reshape(-1, 1, 1, 1) + 0 * x
        return NoiseMoments(self.slope * x, 0.2 + 0.1 * late, 0.05 + 0.1 * late)


@pytest.fixture
def fresh_compiler():
    yield
    torch.compiler.reset()


EDITS = {
    "stroke": lambda net, x: editing.stroke(net, x, strength=0.5, steps=3),
    "stroke at a level": lambda net, x: editing.stroke(net, x, strength="level=2", steps=3, solver="er-sde"),
    "inpaint": lambda net, x: editing.inpaint(net, x, LOWER, steps=3, resample=2),
    "invert": lambda net, x: editing.invert(net, x, steps=3, solver="heun"),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_compile_into_one_graph(name, fresh_compiler):
    net, edit = Net(), EDITS[name]
    compiled = torch.compile(lambda x: edit(net, x), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(PICTURES), edit(net, PICTURES))
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(compiled(0.5 * PICTURES), edit(net, 0.5 * PICTURES))


@pytest.fixture(params=["played", pytest.param("cuda", marks=GPU)])
def place(request, monkeypatch):
    """Device that supports graphs."""
    if request.param == "played":
        played_graphs.play(monkeypatch)
    return torch.device("cuda" if request.param == "cuda" else "cpu")


def captured(place):
    """Arguments and another x_T of a graph, for each kind of edit."""
    net, x = Net().to(place), PICTURES.to(place)
    times = editing.timesteps(net, 3, strength=0.5)
    guides = [editing.noised(net, x, strength=0.5, seed=seed) for seed in (0, 1)]
    mask = LOWER.to(place)[None, None]
    inpainting = editing.Inpainting(image=x, mask=mask, then=solvers.GMS(), resample=2)
    inversion = editing.Inversion(then=solvers.Heun())
    return net, {
        "stroke": ({"timesteps": times, "x_T": guides[0]}, guides[1]),
        "inpaint": ({"steps": 3, "solver": inpainting, "n": 2}, None),
        "invert": ({"steps": 3, "solver": inversion, "x_T": x}, -x),
    }


@pytest.mark.parametrize("kind", ["stroke", "inpaint", "invert"])
def test_edits_are_captured(place, kind):
    net, cases = captured(place)
    given, other = cases[kind]
    draw = gms_fast.graphed(net, **given)
    assert draw.why is None
    assert torch.equal(draw(5), gms_fast.sample(net, seed=5, **given))
    if other is not None:
        assert torch.equal(draw(5, x_T=other), gms_fast.sample(net, seed=5, **{**given, "x_T": other}))
