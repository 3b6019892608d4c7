"""Weights and architecture of checkpoints with improved-DDPM or GMS parameter names.

Sources: Nichol & Dhariwal 2021, arXiv 2102.09672; Guo et al. 2023, arXiv 2311.00941.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gms_fast.storage import arrays, pickles, tensors
from gms_fast.storage.reading import refusing

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz")
CONTAINERS = ("ema_model", "ema", "state_dict", "model", "sd")
LABELS = "label_emb.weight"
ELSEWHERE = "build the network with its own code and use gms_fast.models.wrap"
FOREIGN = {  # module names of other networks, and the kind of network
    r"model\.diffusion_model": "a latent diffusion model",
    r"time_embedding\.linear_1": "a diffusers U-Net",
    r"pos_embed\.proj": "a diffusers transformer",
    r"x_embedder\.proj": "a DiT",
    r"map_layer0": "an EDM network",
    r"emb_fourier": "an EDM2 network",
    r"init_conv": "a denoising-diffusion-pytorch U-Net",
    r"all_modules\.0": "a score-SDE network",
    r"temb\.dense\.0": "a DDIM U-Net",
    r"output_blocks\.\d+\.[12]\.in_layers": "a guided-diffusion U-Net whose residual blocks change the resolution",
}


def read(path: Path) -> dict[str, Tensor]:
    """Read the network's weights by name, from a file with one of SUFFIXES.

    The state dict may be stored under one of CONTAINERS (in `.npz`: keys `container/name`). Names may start with
    "module.". Raises ValueError naming the file and the reason if it cannot be read or holds something else.
    """
    if path.suffix == ".pkl":
        raise ValueError(f"checkpoint {path} seems to be a pickled EDM network: {ELSEWHERE}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"checkpoint {path} must end in one of {', '.join(SUFFIXES)}")
    with refusing(f"checkpoint {path} is truncated or not a checkpoint", path):
        stored = _READERS.get(path.suffix, pickles.read)(path)
    if isinstance(stored, dict):
        stored = next((stored[name] for name in CONTAINERS if isinstance(stored.get(name), dict)), stored)
    if not isinstance(stored, dict) or not stored or not all(isinstance(v, Tensor) for v in stored.values()):
        raise ValueError(
            f"checkpoint {path} holds no state dict: wanted tensors by name, possibly inside {', '.join(CONTAINERS)}"
        )
    weights = {str(name).removeprefix("module."): value for name, value in stored.items()}
    if len(weights) < len(stored):
        raise ValueError(f'checkpoint {path} has weights both with and without "module." before their names')
    return weights


def _read_npz(path: Path) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    nested: dict[str, Any] = {}
    for key, array in arrays.read_npz(path).items():
        container, slash, name = key.partition("/")
        value = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        if slash:
            nested.setdefault(container, {})[name] = value
        elif array.ndim or array.dtype.kind == "f":  # skips integers such as a step count
            flat[key] = value
    return flat | nested


_READERS = {".safetensors": lambda path: tensors.load(path)[0], ".npz": _read_npz}


def architecture(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Infer the arguments of `MomentUNet` from the shapes of `weights`.

    num_heads, image_size, dropout, schedule and moments are left out, because no shape depends on them. Raises
    ValueError naming the first weight of an improved-DDPM U-Net that `weights` lacks, or the other network they seem to
    belong to.
    """
    _refuse_foreign(weights)
    model_channels, in_channels = _shape(weights, "input_blocks.0.0.weight", 4)[:2]
    widths, blocks, attention = _levels(weights)
    if len(set(blocks)) != 1:
        raise ValueError(f"weights must have the same number of residual blocks on every level: got {blocks}")
    if any(width < 1 or width % model_channels for width in widths):
        raise ValueError(f"weights must have level widths that are multiples of {model_channels}: got {widths}")
    embedded = _shape(weights, "input_blocks.1.0.emb_layers.1.weight", 2)[0]
    out_channels = _shape(weights, "out.2.weight", 4)[0]
    if out_channels not in (in_channels, 2 * in_channels):
        raise ValueError(
            f"weights must have {in_channels} or {2 * in_channels} output channels for {in_channels} input channels: "
            f"got {out_channels}, as in a network that is conditioned on an image; {ELSEWHERE}"
        )
    return {
        "in_channels": in_channels,
        "model_channels": model_channels,
        "channel_mult": [width // model_channels for width in widths],
        "num_res_blocks": blocks[0],
        "attention_resolutions": attention,
        "use_scale_shift_norm": embedded == 2 * widths[0],
        "head": _heads(weights),
        "out_channels": out_channels,
        "num_classes": _shape(weights, LABELS, 2)[0] if LABELS in weights else None,
        "null_class": LABELS not in weights,
    }


def _refuse_foreign(weights: dict[str, Tensor]) -> None:
    """Raise ValueError naming the kind of network if `weights` are not of a `MomentUNet`."""
    for module, kind in FOREIGN.items():
        if found := next((name for name in weights if re.search(rf"(^|\.){module}\.", name)), None):
            raise ValueError(f"seems to be from {kind}, judging by {found}: {ELSEWHERE}")


def _levels(weights: dict[str, Tensor]) -> tuple[list[int], list[int], list[int]]:
    """Return the widths, block counts and attention factors of the way down.

    They are the width and the number of residual blocks of each level, and the downsampling factors with attention.
    """
    found = (re.match(r"input_blocks\.(0|[1-9][0-9]{0,5})\.", name) for name in weights)
    last = max((int(match[1]) for match in found if match), default=0)
    widths, blocks, attention = [0], [0], []
    for i in range(1, last + 1):
        if f"input_blocks.{i}.0.op.weight" in weights:
            widths.append(0)
            blocks.append(0)
            continue
        widths[-1] = _shape(weights, f"input_blocks.{i}.0.in_layers.2.weight", 4)[0]
        blocks[-1] += 1
        factor = 2 ** (len(widths) - 1)
        if f"input_blocks.{i}.1.qkv.weight" in weights and factor not in attention:
            attention.append(factor)
    return widths, blocks, attention


def _heads(weights: dict[str, Tensor]) -> str | list[str | None] | None:
    """Return the argument `head` of `MomentUNet`.

    Each head has its own form, as released files mix "simple" and "complex".
    """
    second, third = (_head(weights, name) for name in ("out2", "out3"))
    if second is None and third is not None:
        raise ValueError("weights have a head for the third moment, out3, but none for the second: missing out2")
    return second if second == third else [second, third]


def _head(weights: dict[str, Tensor], name: str) -> str | None:
    if f"{name}.0.in_layers.0.weight" in weights:
        return "complex"
    return "simple" if f"{name}.0.weight" in weights else None


def _shape(weights: dict[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    if name not in weights:
        raise ValueError(
            f"weights are not those of an improved-DDPM U-Net: missing {name}; for another network {ELSEWHERE}"
        )
    shape = tuple(weights[name].shape)
    if len(shape) != axes or 0 in shape:
        raise ValueError(f"weights must have {axes} axes and elements in {name}: got {shape}")
    return shape
