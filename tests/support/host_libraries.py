"""Stand-ins for other libraries as docs/hosts.md imports them, with very small networks.

One function per section of that document provides what its lines import, load and read. The networks of azula and
denoising-diffusion-pytorch are the real ones where installed, at a small size.
"""

import importlib
import pickle
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import torch
from host_networks import Denoiser, DiT, EDMPrecond, GaussianDiffusion, SpacedDiffusion, Unet, UNetModel

_FLAGS = {  # of both script_util modules; all are required
    **{"image_size": 64, "num_channels": 128, "num_res_blocks": 2, "num_heads": 4, "num_heads_upsample": -1},
    **{"attention_resolutions": "16,8", "dropout": 0.0, "class_cond": False, "use_checkpoint": False},
    **{"use_scale_shift_norm": True, "learn_sigma": False, "diffusion_steps": 1000, "noise_schedule": "linear"},
    **{"timestep_respacing": "", "use_kl": False, "predict_xstart": False},
}
_IMPROVED = {**_FLAGS, "sigma_small": False, "rescale_timesteps": True, "rescale_learned_sigmas": True}
_GUIDED = {
    **{**_FLAGS, "num_head_channels": -1, "channel_mult": "", "resblock_updown": False, "use_fp16": False},
    **{"use_new_attention_order": False, "rescale_timesteps": False, "rescale_learned_sigmas": False},
}


def _library(monkeypatch, name, **names):
    """Install a module with these names; its parent packages have nothing else."""
    module = types.ModuleType(name)
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, name, module)
    package, _, last = name.rpartition(".")
    if package:
        _library(monkeypatch, package, **{last: module})


def edm(monkeypatch):
    with open("edm-cifar10-32x32-cond-vp.pkl", "wb") as file:
        pickle.dump({"ema": EDMPrecond(label_dim=10)}, file)


def edm2(monkeypatch):
    def generate_images(net, gnet=None, seeds=range(16, 24), sampler_fn=None, **sampler_kwargs):
        network = EDMPrecond(label_dim=10, channels=4)
        noise = torch.stack([torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        labels = torch.eye(10)[torch.tensor(seeds) % 10]
        given = {"net": network, "noise": noise, "labels": labels, "gnet": network, "randn_like": torch.randn_like}
        latents = sampler_fn(**given, **sampler_kwargs)
        yield types.SimpleNamespace(images=(latents[:, :3] * 127.5 + 128).clip(0, 255).to(torch.uint8))

    _library(monkeypatch, "generate_images", generate_images=generate_images)


def improved_diffusion(monkeypatch):
    def create(**flags):
        network, diffusion = _created(flags, _IMPROVED)
        del network.image_size
        return network, diffusion

    _script_util(monkeypatch, "improved_diffusion", create, _IMPROVED)
    torch.save(UNetModel().state_dict(), "cifar10_uncond_50M_500K.pt")


def guided_diffusion(monkeypatch):
    _script_util(monkeypatch, "guided_diffusion", lambda **flags: _created(flags, _GUIDED), _GUIDED)
    Path("models").mkdir()
    torch.save(UNetModel(num_classes=1000).state_dict(), "models/64x64_diffusion.pt")


def _script_util(monkeypatch, package, create, defaults):
    names = {"create_model_and_diffusion": create, "model_and_diffusion_defaults": lambda: dict(defaults)}
    _library(monkeypatch, f"{package}.script_util", **names)


def _created(flags, defaults):
    assert flags.keys() == defaults.keys()
    assert not flags["timestep_respacing"]
    classes = 1000 if flags["class_cond"] else None
    var = "LEARNED_RANGE" if flags["learn_sigma"] else "FIXED_LARGE"
    diffusion = SpacedDiffusion(var=var, times=flags["diffusion_steps"], rescale=flags["rescale_timesteps"])
    return UNetModel(num_classes=classes, learned=flags["learn_sigma"]), diffusion


def dit(monkeypatch):
    class AutoencoderKL:
        @staticmethod
        def from_pretrained(name):
            return AutoencoderKL()

        def decode(self, z):
            return types.SimpleNamespace(sample=z[:, :3])

    def create_diffusion(timestep_respacing):
        assert not timestep_respacing
        diffusion = SpacedDiffusion()
        del diffusion.rescale_timesteps
        return diffusion

    _library(monkeypatch, "diffusers.models", AutoencoderKL=AutoencoderKL)
    _library(monkeypatch, "diffusion", create_diffusion=create_diffusion)
    _library(monkeypatch, "download", find_model=lambda name: DiT().state_dict())
    _library(monkeypatch, "models", DiT_models={"DiT-XL/2": lambda input_size, num_classes: DiT()})


def denoising_diffusion(monkeypatch):
    class Trainer:
        def __init__(self, diffusion, folder):
            self.ema = types.SimpleNamespace(ema_model=diffusion)

        def load(self, milestone):
            pass

    name = "denoising_diffusion_pytorch"
    plain, classes = (_small(module) for module in (name, f"{name}.classifier_free_guidance"))
    torch.save(classes["GaussianDiffusion"](classes["Unet"](64, (1,), num_classes=10), 128).state_dict(), "classes.pt")
    _library(monkeypatch, f"{name}.classifier_free_guidance", **classes)
    _library(monkeypatch, name, Trainer=Trainer, **plain)


def _small(name):
    """Return network and diffusion of a module for 8x8 images, whatever size is requested."""
    if find_spec("denoising_diffusion_pytorch"):
        theirs = importlib.import_module(name)
        return {
            "Unet": lambda dim, dim_mults, **classes: theirs.Unet(dim=8, dim_mults=(1, 2), **classes),
            "GaussianDiffusion": lambda network, image_size, timesteps=1000: theirs.GaussianDiffusion(
                network, image_size=8, timesteps=timesteps
            ),
        }
    return {
        "Unet": lambda dim, dim_mults, num_classes=0: Unet(classes=bool(num_classes)),
        "GaussianDiffusion": lambda network, image_size, timesteps=1000: GaussianDiffusion(network, "pred_v", (8, 8)),
    }


def azula(monkeypatch):
    if find_spec("azula"):
        adm = importlib.import_module("azula.plugins.adm")
        size = {"num_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": ()}
        network = adm.make_model(num_classes=1000, num_heads=1, **size).eval()
        monkeypatch.setattr(adm, "load_model", lambda name: network)
    else:
        adm = types.SimpleNamespace(load_model=lambda name: Denoiser(tells_variance=False))
        _library(monkeypatch, "azula.plugins", adm=adm)
