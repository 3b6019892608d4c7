"""Adapter for denoising-diffusion-pytorch: a network, or a `GaussianDiffusion` around one."""

from typing import Any

from torch import Tensor

from gms_fast.assumptions import PICTURES, unwrapped
from gms_fast.models.hosts.base import Host, called, first_of, has, root_modules, square
from gms_fast.schedules import VP, Schedule

_FORMS = {"pred_noise": "noise", "pred_x0": "x0", "pred_v": "v"}
_KNOWN = ("GaussianDiffusion", "GaussianDiffusion1D", "LearnedGaussianDiffusion")


def recognises(bare: object) -> bool:
    return "denoising_diffusion_pytorch" in root_modules(bare) or _is_known(bare)


def host(network: Any, bare: Any, schedule: Schedule | None, prediction: str | None) -> Host:
    if hasattr(bare, "sample"):
        return _of_diffusion(bare, schedule, prediction)
    return _of_network(network, bare, schedule=schedule, prediction=prediction)


def _is_known(diffusion: object) -> bool:
    return type(diffusion).__name__ in _KNOWN and has(diffusion, "model", "betas", "objective", "channels")


def _of_diffusion(diffusion: Any, schedule: Schedule | None, prediction: str | None) -> Host:
    name = type(diffusion).__name__
    if not _is_known(diffusion):
        raise ValueError(f"network must be a neural network, or one of {', '.join(_KNOWN)} with betas: got {name}")
    if diffusion.objective not in _FORMS:
        raise ValueError(f"network.objective must be one of {', '.join(_FORMS)}: got {diffusion.objective!r}")
    return _of_network(
        diffusion.model,
        unwrapped(diffusion.model),
        schedule=schedule or VP(diffusion.betas.detach()),
        prediction=prediction or _FORMS[diffusion.objective],
        sample_shape=_shape(diffusion),
        learned=name == "LearnedGaussianDiffusion",
        clip=PICTURES,
    )


def _shape(diffusion: Any) -> tuple[int, ...] | None:
    if not hasattr(diffusion, "seq_length"):
        return square(diffusion.channels, diffusion.image_size)
    shape = (diffusion.channels, diffusion.seq_length)
    return shape if getattr(diffusion, "channel_first", True) else shape[::-1]


def _of_network(network: Any, bare: Any, **known: Any) -> Host:
    if getattr(bare, "self_condition", False):
        raise ValueError(
            "network must not be self-conditioned, because no solver passes on its last output: "
            f"got {type(bare).__name__}(self_condition=True)"
        )
    if hasattr(bare, "classes_emb"):
        known |= {"needed": ("classes",), "call": _kept}
    elif getattr(bare, "needs_class_labels", False):
        known |= {"needed": ("class_labels",)}
    return Host(network=network, bare=bare, features=first_of(bare, "final_conv"), **known)


def _kept(network: Any, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
    """Call the network without dropping classes.

    By default it drops half of them, as in training.
    """
    return called(network, x, t, **{"cond_drop_prob": 0.0, **conditions})
