"""ComfyUI nodes, run against stand-ins for the few interfaces that they use."""

import importlib.util
import io
import json
import re
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from denoisers import Denoiser
from PIL import Image, ImageChops
from places import ROOT

from bench.docs import comfyui_graph
from gms_fast import statistics
from gms_fast.integrations import k_diffusion
from gms_fast.schedules import EDM

pytestmark = pytest.mark.usefixtures("one_thread")

FOLDER = ROOT / "integrations" / "comfyui"
SIGMAS = torch.tensor([14.0, 8.0, 4.5, 2.5, 1.4, 0.8, 0.4, 0.2, 0.1, 0.03, 0.0])
SHAPE = (2, 4, 8, 8)


class KSAMPLER:
    """ComfyUI's sampler object: a k-diffusion function, its options, and `sample`."""

    def __init__(self, sampler_function, extra_options):
        self.sampler_function, self.extra_options = sampler_function, extra_options

    def sample(self, model, sigmas, extra_args, callback, noise):
        def told(info):
            callback(info["i"], info["denoised"], info["x"], len(sigmas) - 1)

        extra_args["denoise_mask"] = None
        state = noise * sigmas[0]
        return self.sampler_function(
            model, state, sigmas, extra_args=extra_args, callback=told, disable=True, **self.extra_options
        )


@pytest.fixture
def nodes(monkeypatch):
    """The folder of nodes, imported as ComfyUI imports it."""
    comfy, samplers = ModuleType("comfy"), ModuleType("comfy.samplers")
    comfy.samplers, samplers.KSAMPLER = samplers, KSAMPLER
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)
    spec = importlib.util.spec_from_file_location("custom_nodes_comfyui", FOLDER / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of statistics, by option and node."""
    folder, data = tmp_path_factory.mktemp("statistics"), torch.linspace(-1, 1, 40 * 256).reshape(40, 4, 8, 8) ** 3
    statistics.gaussian(data, rank=3).save(folder / "gaussian.safetensors")
    nodes = torch.linspace(-3, 4, 701, dtype=torch.float64)
    curves = [torch.full((701, 4, 8, 8), value, dtype=torch.float64) for value in (0.8, 0.05, 0.02)]
    statistics.EmpiricalModel(EDM(), nodes, *curves).save(folder / "curves.safetensors")
    gaussian, curves = str(folder / "gaussian.safetensors"), str(folder / "curves.safetensors")
    return {"GMSFastGMS": gaussian, "GMSFastTeleport": gaussian, "GMSFastDPMSolverV3": curves}


NAMES = [
    "GMSFastGMS",
    "GMSFastERSDE",
    "GMSFastDPMSolverV3",
    "GMSFastUniPC",
    "GMSFastTeleport",
]
each_node = pytest.mark.parametrize("name", NAMES)


def defaults(node):
    """Values that a fresh node shows; for a list of words, its first."""
    inputs = node.INPUT_TYPES()["required"].items()
    return {name: kind[0] if isinstance(kind, list) else rest[0]["default"] for name, (kind, *rest) in inputs}


def made(nodes, name, files, **options):
    """The SAMPLER that a node builds in a graph."""
    node = nodes.NODE_CLASS_MAPPINGS[name]
    file = {option: files[name] for option in ("covariance", "statistics") if option in defaults(node)}
    return getattr(node(), node.FUNCTION)(**{**defaults(node), **file, **options})[0]


def sampled(sampler, model=None, seed=3):
    noise, told = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)), []
    before = noise.clone()
    extra = {"model_options": {}, "seed": seed}
    x = sampler.sample(model or Denoiser(), SIGMAS, extra, lambda *info: told.append(info), noise)
    assert torch.equal(noise, before)
    return x, told


def test_nodes_are_named(nodes):
    assert list(nodes.NODE_CLASS_MAPPINGS) == list(nodes.NODE_DISPLAY_NAME_MAPPINGS) == NAMES


@each_node
def test_node_has_what_comfyui_looks_for(nodes, name):
    node = nodes.NODE_CLASS_MAPPINGS[name]
    assert node.RETURN_TYPES == ("SAMPLER",)
    assert node.CATEGORY
    assert node.DESCRIPTION
    for kind, *rest in node.INPUT_TYPES()["required"].values():
        assert isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN")
        assert isinstance(kind, list) or "default" in rest[0]
    json.dumps(node.INPUT_TYPES())  # as the browser receives it


@each_node
def test_graph_samples(nodes, name, files):
    model = Denoiser()
    x, told = sampled(made(nodes, name, files), model)
    assert x.shape == SHAPE
    assert bool(x.isfinite().all())
    assert told[-1][0] == len(SIGMAS) - 2
    assert {total for *_, total in told} == {len(SIGMAS) - 1}
    assert model.keywords[0] == {"model_options": {}, "seed": 3, "denoise_mask": None}
    assert torch.equal(x, sampled(made(nodes, name, files))[0])


@each_node
def test_options_of_a_node_reach_the_solver(nodes, name, files):
    """Check that each option except the file changes the sample."""
    other = {"s_noise": 0.5, "noise_scale": "ode", "max_stage": 1, "order": 2, "corrector": "same", "pseudo": True}
    other |= {"variant": "bh2", "lower_order_final": False, "until": 4.0, "then": "er-sde"}
    options = [
        option for option in defaults(nodes.NODE_CLASS_MAPPINGS[name]) if option not in ("covariance", "statistics")
    ]
    base = {"then": "er-sde:order=2"} if name == "GMSFastTeleport" else {}
    base |= {"corrector": "none"} if name == "GMSFastDPMSolverV3" else {}
    usual, _ = sampled(made(nodes, name, files, **base))
    assert options
    for option in options:
        changed, _ = sampled(made(nodes, name, files, **{**base, option: other[option]}))
        assert not torch.equal(changed, usual), option


def test_every_word_of_a_list_is_taken(nodes, files):
    for name in NAMES:
        for option, (kind, *_) in nodes.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()["required"].items():
            for word in kind if isinstance(kind, list) else ():
                assert sampled(made(nodes, name, files, **{option: word}))[0].isfinite().all()


def test_er_sde_node_is_the_sampler_of_k_diffusion_s_signature(nodes, files):
    x, _ = sampled(made(nodes, "GMSFastERSDE", files))
    state = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * SIGMAS[0]
    assert torch.equal(x, k_diffusion.sample_er_sde(Denoiser(), state, SIGMAS, {"seed": 3}, disable=True))


def test_flow_models_are_told_by_their_patcher(nodes, files):
    """Check that a model of noise levels and its flow, with scaled levels and states, agree."""
    sampler = made(nodes, "GMSFastERSDE", files, noise_scale="ode")
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    levels = SIGMAS / (1 + SIGMAS)
    plain, flow = (
        sampler.sample(Denoiser(flow=is_flow), s, {"seed": 3}, lambda *info: None, noise)
        for is_flow, s in ((False, SIGMAS), (True, levels))
    )
    # float32 rounds 1 - sigma = 1/15 to 1e-6 of itself; of states up to 40 in the first step, whose share falls to 1/20
    torch.testing.assert_close(flow, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("GMSFastGMS", "covariance"),
        ("GMSFastDPMSolverV3", "statistics"),
        ("GMSFastTeleport", "statistics"),
    ],
)
def test_missing_file_is_said_by_the_node(nodes, files, name, option, tmp_path):
    gone = str(tmp_path / "gone.safetensors")
    with pytest.raises(FileNotFoundError, match=re.escape(gone)):
        made(nodes, name, files, **{option: gone})
    with pytest.raises(ValueError, match=f"{option} must be the path of a file that `gms-fast statistics` wrote"):
        made(nodes, name, files, **{option: ""})


def test_statistics_of_other_latents_are_refused_before_the_model_is_asked(nodes, files):
    model = Denoiser()
    sampler = made(nodes, "GMSFastGMS", files)
    with pytest.raises(ValueError, match=r"covariance must be of samples of shape \(4, 9, 8\): got \(4, 8, 8\)"):
        sampler.sample(model, SIGMAS, {"seed": 3}, lambda *info: None, torch.zeros(1, 4, 9, 8))
    assert not model.sigmas


def test_folder_is_imported_with_nothing_but_gms_fast():
    """Import without ComfyUI: only a node that is used needs it and its dependencies."""
    code = f"""
import sys
sys.path.insert(0, {str(FOLDER.parent)!r})
import comfyui
assert not {{name.partition(".")[0] for name in sys.modules}} & {{"comfy", "k_diffusion", "diffusers", "scipy"}}
print(len(comfyui.NODE_CLASS_MAPPINGS))
"""
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(len(NAMES))]


def test_readme_names_every_node_and_its_links_resolve(nodes):
    text = (FOLDER / "README.md").read_text()
    assert all(f"**{title}**" in text for title in nodes.NODE_DISPLAY_NAME_MAPPINGS.values())
    assert all((FOLDER / link).exists() for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link)


def test_graph_is_small_and_as_drawn():
    """Compare the drawing of the graph, but for few pixels that depend on the library."""
    file = FOLDER / "graph.png"
    assert file.stat().st_size < 30_000
    drawn, kept = (Image.open(source).convert("L") for source in (io.BytesIO(comfyui_graph.encoded()), file))
    assert drawn.size == kept.size
    away = ImageChops.difference(drawn, kept).histogram()
    assert sum(away[32:]) < 0.02 * drawn.width * drawn.height
