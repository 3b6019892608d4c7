"""Compare our k-diffusion samplers with those of k-diffusion and ComfyUI.

    python -m bench.experiments.k_diffusion --k-diffusion CHECKOUT --comfyui CHECKOUT

It takes the files of samplers from checkouts of k-diffusion and ComfyUI and runs them unchanged, in float64, beside
ours from the same noise. Their other imports are replaced by stand-ins. It prints the largest difference of the
samples, at the sigmas of Karras et al. 2022 and at those of a flow model.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from tqdm import trange

from gms_fast.integrations import k_diffusion

WIDE, SHAPE = torch.float64, (2, 3, 8, 8)
MEANS, SPREADS = torch.tensor([-0.6, 0.6], dtype=WIDE), torch.tensor([0.4, 0.3], dtype=WIDE)
LOG_WEIGHTS = torch.tensor([0.3, 0.7], dtype=WIDE).log()
ETAS = {f"eta={eta:g}": {"eta": eta} for eta in (0.0, 0.5, 1.0)}
TYPES = {f"{a}, {kind}": {**b, "solver_type": kind} for a, b in ETAS.items() for kind in ("midpoint", "heun")}
CASES: dict[str, dict[str, dict[str, Any]]] = {  # sampler: options by name
    "euler": {"": {}},
    "heun": {"": {}},
    "euler_ancestral": ETAS,
    "dpmpp_2m": {"": {}},
    "dpmpp_2m_sde": TYPES,
    "dpmpp_3m_sde": ETAS,
    "er_sde": {f"max_stage={order}": {"max_stage": order} for order in (1, 2, 3)},
    "unipc": {f"variant={variant}": {"variant": variant} for variant in ("bh1", "bh2")},
}
NOISELESS = ("euler", "heun", "dpmpp_2m", "unipc")


class CONST:
    """Stand-in for ComfyUI's class of flow models."""

    def percent_to_sigma(self, percent: float) -> Tensor:
        """Return the level slightly below 1 at which ComfyUI starts."""
        return torch.tensor(1 - percent, dtype=WIDE)


class Denoiser:
    """E[x_0|x] of data that are a mixture of two normal laws, element by element."""

    def __init__(self, flow: bool) -> None:
        self.flow, sampling = flow, CONST() if flow else object()
        patcher = SimpleNamespace(get_model_object=lambda name: sampling)
        self.inner_model = SimpleNamespace(model_patcher=patcher, inner_model=SimpleNamespace(model_sampling=sampling))

    def __call__(self, x: Tensor, sigma: Tensor, **keywords: object) -> Tensor:
        sigma = sigma.reshape(-1, *[1] * x.ndim)
        alpha = 1 - sigma if self.flow else torch.ones_like(sigma)
        total, away = (alpha * SPREADS) ** 2 + sigma**2, x[..., None] - alpha * MEANS
        share = (LOG_WEIGHTS - total.log() / 2 - away**2 / (2 * total)).softmax(-1)
        return (share * (MEANS + alpha * SPREADS**2 / total * away)).sum(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k-diffusion", type=Path, help="folder of a checkout of k-diffusion")
    parser.add_argument("--comfyui", type=Path, help="folder of a checkout of ComfyUI")
    given = parser.parse_args()
    torch.set_default_dtype(WIDE)
    if given.k_diffusion is not None:
        compare("k-diffusion", peers(given.k_diffusion / "k_diffusion" / "sampling.py"), flows=False)
    if given.comfyui is not None:
        own = peers(given.comfyui / "comfy" / "k_diffusion" / "sampling.py")
        own["sample_unipc"] = peers(given.comfyui / "comfy" / "extra_samplers" / "uni_pc.py")["sample_unipc"]
        compare("ComfyUI", own, flows=True)


def peers(file: Path) -> dict[str, Any]:
    """Return the names that a file defines, with its other imports replaced by stand-ins."""
    stand_ins = (
        "torchdiffeq",
        "torchsde",
        "comfy",
        "comfy.model_patcher",
        "comfy.model_sampling",
        "comfy.utils",
        "peer",
    )
    for name in (*stand_ins, "comfy.memory_management", "peer.utils", "peer.deis", "peer.sa_solver"):
        sys.modules[name] = module = ModuleType(name)
        module.__dict__.update(__path__=[], CONST=CONST, model_trange=trange, odeint=None)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)
    sys.modules["peer.utils"].append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # type: ignore[attr-defined]
    defined: dict[str, Any] = {"__package__": "peer", "__name__": "peer.sampling"}
    exec(compile(file.read_text(), str(file), "exec"), defined)
    return defined


def compare(who: str, own: dict[str, Any], *, flows: bool) -> None:
    """Print a line for every sampler and table of sigmas."""
    for table, sigmas in tables(flows):
        for name, options in CASES.items():
            theirs = own.get(f"sample_{name}")
            for label, chosen in options.items() if theirs is not None else ():
                away = difference(theirs, name, sigmas, chosen, table.startswith("flow"))
                print(f"{who:12} {table:18} {name:16} {label:18} {away:.1e}", flush=True)


def tables(flows: bool) -> Iterator[tuple[str, Tensor]]:
    levels = torch.linspace(14.6 ** (1 / 7), 0.03 ** (1 / 7), 12) ** 7
    zero, ramp = torch.zeros(1), torch.linspace(1, 0, 13)
    yield "karras", torch.cat([levels, zero])
    yield "karras, above 0", levels
    if flows:
        shifted = 3 * ramp / (1 + 2 * ramp)
        yield "flow, from 1", shifted
        yield "flow, from below 1", shifted[1:]


def difference(theirs: Callable[..., Tensor], name: str, sigmas: Tensor, options: dict[str, Any], flow: bool) -> float:
    """Return the largest difference of two samples from equal state and noise."""
    x = sigmas[0] * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    made = []
    for sampler in (theirs, getattr(k_diffusion, f"sample_{name}")):
        noise = {} if name in NOISELESS else {"noise_sampler": _noise()}
        made.append(sampler(Denoiser(flow), x.clone(), sigmas.clone(), extra_args={}, disable=True, **options, **noise))
    return float((made[0] - made[1]).abs().max())


def _noise() -> Callable[[Tensor, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    return lambda sigma, sigma_next: torch.randn(SHAPE, generator=generator)


if __name__ == "__main__":
    main()
