"""docs/hosts.md: its code runs and does what the text says, on installed libraries."""

import json
import re
import types
import warnings

import host_libraries
import numpy as np
import pytest
import torch
from host_networks import EDMPrecond
from places import ROOT, VECTORS

import gms_fast
from bench.records.checkout import RESULTS
from bench.speed import released_step
from bench.speed.cases import noise_moments
from gms_fast import ops
from gms_fast.ops import reference
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = (ROOT / "docs" / "hosts.md").read_text()
FIRST, *PARTS = PAGE.split("\n## ")
BLOCK = re.compile(r"```python\n(.*?)```", re.S)
SECTIONS = {part.partition("\n")[0]: blocks for part in PARTS if (blocks := BLOCK.findall(part))}
RELEASED = SECTIONS.pop("The released code of GMS")
LINES, WHOLE_STEP, WHOLE_LOOP, THEIR_FIT = range(4)  # its blocks
HOSTS = {  # section: imports, and the shape of the result of each block
    "EDM": (host_libraries.edm, (4, 3, 4, 4)),
    "EDM2": (host_libraries.edm2, (4, 3, 4, 4)),
    "improved-diffusion": (host_libraries.improved_diffusion, (4, 3, 32, 32)),
    "guided-diffusion": (host_libraries.guided_diffusion, (4, 3, 4, 4)),
    "DiT": (host_libraries.dit, (4, 3, 4, 4)),
    "denoising-diffusion-pytorch": (host_libraries.denoising_diffusion, (4, 3, 8, 8)),
    "azula": (host_libraries.azula, (4, 3, 64, 64)),
}
STEP = 499, 399  # t -> s
DRAWS = ops.philox_normal, ops.philox_uniform  # of streams 0 and 1


def test_every_host_has_its_section():
    assert SECTIONS.keys() == HOSTS.keys()
    assert len(RELEASED) == 4


def test_first_lines_run():
    [block] = BLOCK.findall(FIRST)
    exec(block, scope := {"gms_fast": gms_fast, "network": EDMPrecond()})
    assert scope["x"].shape == (4, 3, 4, 4)


@pytest.mark.parametrize("host", HOSTS)
def test_lines_run_without_a_warning(host, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    provide, shape = HOSTS[host]
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(0)
        provide(monkeypatch)
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "clip")  # samples of untrained networks leave the data range
        for block in SECTIONS[host]:
            exec(block, scope := {})
            assert scope["x"].shape == shape
            assert torch.isfinite(scope["x"].float()).all()


def in_their_loop(**names):
    """Names that a step of the released loop has in scope."""
    time, to = STEP
    step = gms_fast.StepCoefficients.between(VPLinear(), time, to)
    x_t, *moments = (t.double() for t in noise_moments((4, 3, 8, 8), "cpu", 0))
    numbers = (step.alpha_t, step.sigma_t, step.A, step.B, step.c)
    mean, base, excess, third, _ = reference.step_moments(x_t, *moments, numbers, moments="released")
    cov = base + excess
    them = types.SimpleNamespace(
        ratio=time - to,
        rescale_ratio=1,
        ddpm_cov=lambda x_t, t: torch.full((len(x_t), 1, 1, 1), step.c, dtype=x_t.dtype),
        model=lambda x_t, t: moments,
    )
    return {
        **{"torch": torch, "gms_fast": gms_fast, "self": them, "x_t": x_t, "t": torch.full((4,), time)},
        **{"time_step": time, "mean": mean, "cov": cov, "tmoment": third + 3 * mean * cov + mean**3},
        **{"noise": torch.zeros_like(x_t), **names},
    }


def after(block, **names):
    exec(RELEASED[block], scope := in_their_loop(**names))
    return scope


def test_three_lines_draw_from_the_closed_fit_with_one_component_a_picture():
    scope = after(LINES)
    mean, cov, third = (scope[name] for name in ("mean", "cov", "third"))
    step = gms_fast.StepCoefficients.between(VPLinear(), *STEP)
    _, a, b, var = ops.fit_mixture(mean, cov, third, step.c)
    z, u = (draw(mean.shape, seed=0, step=STEP[0], stream=s) for s, draw in enumerate(DRAWS))
    want = torch.where(u[:, :1, :1, :1] < 1 / 3, a, b) + var.sqrt() * z
    torch.testing.assert_close(scope["x_t"], want, rtol=0, atol=1e-6)  # float32 uniforms


def test_whole_step_is_that_of_the_three_lines():
    torch.testing.assert_close(after(WHOLE_STEP)["x_t"], after(LINES)["x_t"], rtol=0, atol=1e-9)


def test_three_lines_reproduce_the_recorded_fit():
    vectors = json.loads((VECTORS / "gms_fit_vectors.json").read_text())
    read = lambda values: torch.tensor(values, dtype=torch.float64).reshape(8, 1, 4, 4)  # noqa: E731
    mean, cov = read(vectors["mean"]), read(vectors["var"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scope = after(THEIR_FIT, mean=mean, cov=cov, tmoment=read(vectors["third_raw"]), noise=torch.zeros_like(mean))
    a, b, beta = (read(vectors["after_70"][name]) for name in ("mu_a", "mu_b", "beta"))
    for got, want in ((scope["a"], a), (scope["b"], b), (scope["var"], cov * beta)):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    of_a = (scope["x_t"] == scope["a"]).flatten(1)
    assert (of_a.all(1) | (scope["x_t"] == scope["b"]).flatten(1).all(1)).all()
    assert 0 < of_a.all(1).sum() < 8


def test_released_file_is_sampled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with np.load(VECTORS / "gms_unet_checkpoint.npz") as arrays:
        weights = {n.removeprefix("sd/"): torch.from_numpy(arrays[n]) for n in arrays.files if n.startswith("sd/")}
    torch.save({"ema_model": weights}, "ckpt_3_300000.pt")
    assert after(WHOLE_LOOP)["x"].shape == (4, 3, 32, 32)


def test_page_shows_the_committed_figures():
    result = json.loads((RESULTS / "released_step_cpu.json").read_text())
    assert released_step.table(result) in PAGE
    assert f"commit {result['environment']['commit']}" in PAGE
