"""ComfyUI nodes that output gms_fast's solvers as SAMPLERs.

Copy this folder into `custom_nodes`.
"""

from collections.abc import Callable
from typing import Any

from gms_fast.integrations import k_diffusion
from gms_fast.solvers.er_sde import NOISE_SCALES
from gms_fast.tables.empirical import load as load_curves
from gms_fast.tables.gaussian import load_gaussian

Inputs = dict[str, dict[str, tuple[Any, ...]]]
NONE = "none"
FILE = ("STRING", {"default": "", "tooltip": "path, on the server, of a file written by `gms-fast statistics`"})
S_NOISE = (
    "FLOAT",
    {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.01, "tooltip": "factor by which the noise is multiplied"},
)


class _Node:
    """Node whose one output is a SAMPLER, for `SamplerCustom` and `SamplerCustomAdvanced`."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = "sampling/custom_sampling/samplers"


class GMS(_Node):
    DESCRIPTION = (
        "Gaussian Mixture Solver that draws all elements jointly. Needs a file with the covariance of the data, as "
        "latents."
    )

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802 - ComfyUI's name
        return {"required": {"covariance": FILE, "s_noise": S_NOISE}}

    def get_sampler(self, covariance: str, s_noise: float) -> tuple[Any]:
        """Return the sampler, with switch=0.

        ComfyUI's guidance and masks pass on only one of the moments that a model returns. The node therefore draws all
        elements jointly, with the covariance of the data.
        """
        known = load_gaussian(_named("covariance", covariance))
        return _sampler(k_diffusion.sample_gms, covariance=known, switch=0, s_noise=s_noise)


class ERSDE(_Node):
    DESCRIPTION = "ER-SDE-Solver, for any model."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        scales = ["er_sde_4", *(name for name in NOISE_SCALES if not name.startswith("sde_") and name != "er_sde_4")]
        order = ("INT", {"default": 3, "min": 1, "max": 3})
        return {"required": {"noise_scale": (scales,), "max_stage": order, "s_noise": S_NOISE}}

    def get_sampler(self, noise_scale: str, max_stage: int, s_noise: float) -> tuple[Any]:
        return _sampler(k_diffusion.sample_er_sde, noise_scaler=noise_scale, max_stage=max_stage, s_noise=s_noise)


class DPMSolverV3(_Node):
    DESCRIPTION = "DPM-Solver-v3. Needs a file of statistics measured on this network."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        order = ("INT", {"default": 3, "min": 1, "max": 3})
        flags = {"pseudo": ("BOOLEAN", {"default": False}), "lower_order_final": ("BOOLEAN", {"default": True})}
        return {"required": {"statistics": FILE, "order": order, "corrector": (["next", "same", NONE],), **flags}}

    def get_sampler(
        self, statistics: str, order: int, corrector: str, pseudo: bool, lower_order_final: bool
    ) -> tuple[Any]:
        return _sampler(
            k_diffusion.sample_dpm_solver_v3,
            statistics=load_curves(_named("statistics", statistics)),
            order=order,
            corrector=None if corrector == NONE else corrector,
            pseudo=pseudo,
            lower_order_final=lower_order_final,
        )


class UniPC(_Node):
    DESCRIPTION = "UniPC, predictor and corrector, for any model."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        return {"required": {"variant": (["bh1", "bh2"],), "order": ("INT", {"default": 3, "min": 1, "max": 4})}}

    def get_sampler(self, variant: str, order: int) -> tuple[Any]:
        return _sampler(k_diffusion.sample_unipc, variant=variant, order=order)


class Teleport(_Node):
    DESCRIPTION = (
        "Skips the noisiest steps by treating the data as Gaussian. Needs a file with the mean and covariance of the "
        "data, as latents."
    )

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        end = "noise level sigma where the teleport ends"
        until = {"default": 10.0, "min": 1.0, "max": 1000.0, "step": 0.1, "tooltip": end}
        then = {"default": "dpm-solver++", "tooltip": "solver for the remaining steps, such as er-sde:order=2"}
        needed = {"statistics": FILE, "until": ("FLOAT", until), "then": ("STRING", then), "s_noise": S_NOISE}
        return {"required": needed}

    def get_sampler(self, statistics: str, until: float, then: str, s_noise: float) -> tuple[Any]:
        known = load_gaussian(_named("statistics", statistics))
        return _sampler(k_diffusion.sample_teleport, statistics=known, until=until, then=then, s_noise=s_noise)


def _named(option: str, file: str) -> str:
    if not file:
        raise ValueError(f"{option} must be the path of a file that `gms-fast statistics` wrote: got none")
    return file


def _sampler(function: Callable[..., Any], **options: Any) -> tuple[Any]:
    """Wrap a sampling function with k-diffusion's signature, and its options, as a SAMPLER."""
    from comfy.samplers import KSAMPLER

    return (KSAMPLER(function, options),)


NODE_CLASS_MAPPINGS = {
    "GMSFastGMS": GMS,
    "GMSFastERSDE": ERSDE,
    "GMSFastDPMSolverV3": DPMSolverV3,
    "GMSFastUniPC": UniPC,
    "GMSFastTeleport": Teleport,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "GMSFastGMS": "GMS (gms_fast)",
    "GMSFastERSDE": "ER-SDE (gms_fast)",
    "GMSFastDPMSolverV3": "DPM-Solver-v3 (gms_fast)",
    "GMSFastUniPC": "UniPC (gms_fast)",
    "GMSFastTeleport": "Gaussian teleport (gms_fast)",
}
