"""The loop on a device that the host does not wait for, and in a CUDA graph."""

import math
import warnings
from itertools import pairwise

import pytest
import torch

import gms_fast
from gms_fast import NoiseMoments, ops, solvers, statistics
from gms_fast.finite import NOTHING, FiniteCheck
from gms_fast.schedules import VPLinear

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")]
GAUSSIAN = statistics.load_gaussian("digits")
TABLE = solvers.GGDMTable.of(solvers.UniP(), VPLinear(), VPLinear().timesteps(10, 0.7)[:-1])
SOLVERS = {
    "gms": "gms",
    "free, element": solvers.GMS(fit="free", component="element"),
    "sn-ddpm": "sn-ddpm",
    "ddpm": "ddpm",
    "ddim, eta 0.5": solvers.DDIM(eta=0.5),
    "ggdm": solvers.GGDM(TABLE),
    "gms with covariance": solvers.GMS(covariance=GAUSSIAN, switch=3),
    "teleport": solvers.Teleport(GAUSSIAN, 5.0, solvers.ERSDE()),
}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_report_names_the_first_of_all_that_was_bad(bad):
    finite = FiniteCheck(lambda code, _: f"code {code}")
    finite.begin(torch.zeros(1, device="meta"))  # a device that the host does not wait for
    finite._first = torch.full((1,), NOTHING, dtype=torch.int32)
    for code, values in ((0, (1.0, 3e38)), (9, (bad,)), (5, (0.0, bad)), (7, (bad, 1.0)), (2, ())):
        finite.see(torch.tensor(values), code)
        finite.look()
    with pytest.raises(ValueError, match="code 5"):
        finite.report()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_on_a_cpu_the_error_is_at_once(dtype):
    finite = FiniteCheck(lambda code, _: f"code {code}")
    finite.begin(torch.zeros(1))
    finite.see(torch.full((2, 3), torch.finfo(dtype).max, dtype=dtype), 1)
    finite.see(torch.zeros(0, 3, dtype=dtype), 2)
    with pytest.raises(ValueError, match="code 3"):
        finite.see(torch.tensor([1, math.nan, 2], dtype=dtype), 3)


class Net(torch.nn.Module):
    """Network with image moments from sums and products, with NaN in e2 from time `bad_from` on."""

    sample_shape, schedule, moments = (1, 8, 8), VPLinear(), "central"

    def __init__(self, bad_from=-1.0):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.9))
        self.bad_from = bad_from

    def forward(self, x, t):
        t = t.reshape(-1, 1, 1, 1)
        level = t / 1000 + 0 * x
        e2 = (0.2 + 0.1 * level).masked_fill(t <= self.bad_from, math.nan)
        return NoiseMoments(self.slope * x, e2, 0.05 + 0.1 * level)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_bad_network_output_is_named_on_every_device(device):
    seen = []
    with pytest.raises(ValueError, match=r"NaN or infinity in e2 at step 2 \(t = 166\)"):
        gms_fast.sample(Net(bad_from=200).to(device), 3, n=2, callback=lambda i, *_: seen.append(i))
    assert seen == [0, 1, 2]
    with pytest.raises(ValueError, match="x_T must be finite"):
        gms_fast.sample(Net().to(device), 3, x_T=torch.full((1, 1, 8, 8), math.nan, device=device))


@pytest.fixture(params=[pytest.param("cuda", marks=GPU)])
def net(request):
    return Net().to(request.param)


def test_host_waits_once(net):
    """The host waits for the report at the end."""
    gms_fast.sample(net, n=4)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gms_fast.sample(net, n=4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing CUDA operation" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("seeds_of_two_replays", [([1, 2, 3, -1], [7, 1, 5, 6]), (3, -4)], ids=["each", "all"])
def test_captured_loop_draws_for_the_seeds_of_each_replay(net, solver, seeds_of_two_replays):
    batches = [torch.tensor(batch, device="cuda") for batch in seeds_of_two_replays]
    seeds = torch.zeros_like(batches[0])

    def draw():
        return gms_fast.sample(net, n=4, seed=seeds, solver=solver)

    want = [draw() for _ in map(seeds.copy_, batches)]  # also builds the kernels, which is impossible in a capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x = draw()
    for batch, expected in zip(batches, want, strict=True):
        seeds.copy_(batch)
        graph.replay()
        assert torch.equal(x, expected)
    assert not torch.equal(*want)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_one_captured_step_serves_every_step(net, backend):
    """Each replay reads coefficients, seed and step index."""
    schedule, times = VPLinear(), [999, 700, 300, 0]
    steps = [gms_fast.StepCoefficients.between(schedule, t, s) for t, s in pairwise(times)]
    x, e1, e2, e3 = (torch.rand(4, 1, 8, 8, device="cuda") for _ in range(4))
    numbers, seed, index = steps[0].as_tensor("cuda"), torch.tensor(0, device="cuda"), torch.tensor(0, device="cuda")
    gms_fast.set_backend(backend)
    try:
        ops.gms_step(x, e1, e2, e3, numbers, seed=seed, step_index=index)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            x_s = ops.gms_step(x, e1, e2, e3, numbers, seed=seed, step_index=index)
        for i, step in enumerate(steps):
            numbers.copy_(step.as_tensor("cuda"))
            seed.fill_(7 + i)
            index.fill_(i)
            graph.replay()
            assert torch.equal(x_s, ops.gms_step(x, e1, e2, e3, step, seed=7 + i, step_index=i))
    finally:
        gms_fast.set_backend(None)


def test_loop_that_the_compiler_captures_draws_for_the_seeds_of_each_call(net):
    """Samples agree but for the rounding that test_compile.py bounds by 1e-3."""
    draw = torch.compile(lambda seeds: gms_fast.sample(net, n=4, seed=seeds), fullgraph=True, mode="reduce-overhead")
    for first in (1, 50, 90):
        seeds = torch.arange(first, first + 4, device="cuda")
        assert (draw(seeds) - gms_fast.sample(net, n=4, seed=seeds)).abs().max() < 1e-3
