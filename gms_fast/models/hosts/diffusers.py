"""Adapter for diffusers: a network, a pipeline, or (network, scheduler)."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from gms_fast.assumptions import UNSAID, unwrapped
from gms_fast.models.hosts.base import Host, first_of, range_of, root_modules, square
from gms_fast.schedules import Flow, Schedule
from gms_fast.schedules.hosts import training_of
from gms_fast.storage.reading import read_json, refusing

_NETWORKS = ("unet", "transformer")  # names of the network in a pipeline
_LAST = ("conv_norm_out", "conv_out", "proj_out_2", "proj_out", "out_block")  # modules before the output
_SCHEDULER, _CONFIG, _SCHEDULER_CONFIG = "scheduler", "config.json", "scheduler_config.json"
_CODERS = ("vae", "vqvae", "movq")
_LEARNED = ("DiTTransformer2DModel", "PixArtTransformer2DModel", "HunyuanDiT2DModel", "LatteTransformer3DModel")
_NEEDED = {  # config entry of a network, and the keyword of its call that the entry demands
    "num_class_embeds": "class_labels",
    "class_embed_type": "class_labels",
    "num_embeds_ada_norm": "class_labels",
    "cross_attention_dim": "encoder_hidden_states",
    "joint_attention_dim": "encoder_hidden_states",
    "caption_channels": "encoder_hidden_states",
    "pooled_projection_dim": "pooled_projections",
    "guidance_embeds": "guidance",
    "time_cond_proj_dim": "timestep_cond",
    "addition_embed_type": "added_cond_kwargs",
}
_PER_MILLE = (  # networks that pipelines call with t/1000
    "AuraFlowTransformer2DModel",
    "ChromaTransformer2DModel",
    "Flux2Transformer2DModel",
    "Flux3Transformer2DModel",
    "FluxTransformer2DModel",
    "Krea2Transformer2DModel",
    "LongCatImageTransformer2DModel",
    "NucleusMoEImageTransformer2DModel",
    "OvisImageTransformer2DModel",
    "PRXTransformer2DModel",
    "QwenImageTransformer2DModel",
)
_REVERSED = (  # networks whose times fall with the noise
    "Lumina2Transformer2DModel",
    "LuminaNextDiT2DModel",
    "OmniGenTransformer2DModel",
    "ZImageTransformer2DModel",
)


def is_folder(path: Path) -> bool:
    """Return True for a folder that diffusers wrote: a network, or a network and its scheduler."""
    return path.is_dir() and (_part(path) is not None or _class_name(path / _CONFIG) is not None)


def load(folder: Path) -> Any:
    """Load the network in a folder of diffusers, or (network, scheduler) where both are there.

    Other parts of the pipeline are not read. Raises ImportError without diffusers, ValueError for unknown classes.
    """
    part = _part(folder)
    network = _made(
        folder if part is None else folder / part, _CONFIG, use_safetensors=True, low_cpu_mem_usage=False
    ).eval()
    return network if part is None else (network, _made(folder / _SCHEDULER, _SCHEDULER_CONFIG))


def _part(folder: Path) -> str | None:
    """Return the name of the network's subfolder in the folder of a pipeline."""
    there = (folder / _SCHEDULER).is_dir()
    return next((name for name in _NETWORKS if there and (folder / name).is_dir()), None)


def _class_name(file: Path) -> str | None:
    if not file.is_file():
        return None
    with refusing(f"{file} does not describe a part of a pipeline", file):
        said = read_json(file)
    name = said.get("_class_name") if isinstance(said, dict) else None
    return name if isinstance(name, str) else None


def _made(folder: Path, config: str, **options: Any) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f'{folder} needs diffusers: pip install "gms-fast[diffusers]"') from error
    name = _class_name(folder / config)
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, (diffusers.ModelMixin, diffusers.SchedulerMixin))):
        # A pipeline would import code that lies in the folder.
        raise ValueError(
            f"{folder / config} must name a network or a scheduler from diffusers {diffusers.__version__}: got {name!r}"
        )
    return kind.from_pretrained(folder, local_files_only=True, **options)  # type: ignore[attr-defined]


def recognises(bare: object) -> bool:
    if isinstance(bare, tuple):
        return len(bare) == 2 and hasattr(bare[1], "set_timesteps")
    return "diffusers" in root_modules(bare) or (hasattr(bare, "scheduler") and _network_of(bare) is not None)


def host(network: Any, bare: Any, schedule: Schedule | None, prediction: str | None) -> Host:
    whole, scheduler = bare, None
    if isinstance(whole, tuple):
        network, scheduler = whole
    elif _network_of(whole) is not None:
        network, scheduler = _network_of(whole), whole.scheduler
    bare = unwrapped(network)
    name, config = type(bare).__name__, getattr(bare, "config", None)
    if name in _REVERSED:
        raise ValueError(
            f"network must expect times that increase with the noise: got {name}, whose times decrease; "
            "wrap a callable that converts them"
        )
    if isinstance(schedule, Flow):
        schedule = schedule.asked_like(Flow(time_scale=1000.0))  # the network times of their schedulers
    if scheduler is not None and (schedule is None or prediction is None):
        trained, form = training_of(scheduler)
        schedule, prediction = schedule or trained, prediction or form
    channels = _channels(name, config)
    return Host(
        network=network,
        bare=bare,
        schedule=schedule,
        prediction=prediction or ("flow" if isinstance(schedule, Flow) else "noise"),
        sample_shape=_shape(name, channels, config),
        clip=_clip(whole, scheduler, channels),
        learned=name in _LEARNED or _said(scheduler, "variance_type") == "learned_range" or None,
        needed=_needed(bare),
        features=first_of(bare, *_LAST),
        call=_call_of(bare, schedule),
    )


def _network_of(pipeline: object) -> Any:
    return next((n for name in _NETWORKS if (n := getattr(pipeline, name, None)) is not None), None)


def _said(holder: Any, name: str) -> Any:
    return getattr(getattr(holder, "config", None), name, None)


def _channels(name: str, config: Any) -> int | None:
    inner, outer = getattr(config, "in_channels", None), getattr(config, "out_channels", None)
    if inner is not None and outer is not None and outer not in (inner, 2 * inner):
        raise ValueError(
            f"network must have as many input channels as output channels: got {name} with in_channels={inner}, "
            f"out_channels={outer}; wrap a callable that adds the missing channels"
        )
    return inner


def _shape(name: str, channels: int | None, config: Any) -> tuple[int, ...] | None:
    size = getattr(config, "sample_size", None)
    if "1D" in name:
        return None if channels is None or size is None else (channels, size)
    return None if "3D" in name else square(channels, size)


def _clip(whole: Any, scheduler: Any, channels: int | None) -> tuple[float, float] | str | None:
    """Return the data range: None for latents, for pixels that of the scheduler.

    It is UNSAID where the scheduler states none.
    """
    if any(getattr(whole, coder, None) is not None for coder in _CODERS) or range_of(channels) is None:
        return None
    clips = _said(scheduler, "clip_sample")
    if clips is None:
        return UNSAID
    reach = float(_said(scheduler, "clip_sample_range") or 1.0)
    return (-reach, reach) if clips else None


def _needed(bare: Any) -> tuple[str, ...]:
    """Return the keywords that the network needs.

    They are those without a default, and those that its config demands although they have one.
    """
    _, *accepted = _parameters(bare)
    if "timestep" not in {p.name for p in accepted}:
        accepted = accepted[1:]  # the time, under another name
    required = [p.name for p in accepted if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    wanted = [keyword for name, keyword in _NEEDED.items() if _said(bare, name)]
    if _said(bare, "addition_embed_type") == "text":  # computed from encoder_hidden_states
        wanted.remove("added_cond_kwargs")
    names = {p.name for p in accepted}
    return tuple(dict.fromkeys(n for n in (*required, *wanted) if n in names and n != "timestep"))


def _parameters(bare: Any) -> Iterable[inspect.Parameter]:
    return inspect.signature(getattr(bare, "forward", bare)).parameters.values()


def _call_of(bare: Any, schedule: Schedule | None) -> Callable[..., Any]:
    """Return the call of the network: time by keyword, in thousandths where it expects that."""
    names = [parameter.name for parameter in _parameters(bare)]
    tells = {"return_dict": False} if "return_dict" in names else {}
    named = type(bare).__name__ in _PER_MILLE
    in_thousandths = named and schedule is not None and float(schedule.network_time(schedule.t_max)) > 1
    scale = (1e-3 if in_thousandths else 1.0) * (_said(bare, "timestep_scale") or 1.0)

    def call(network: Callable[..., Any], x: Tensor, t: Tensor, **conditions: Any) -> Any:
        time = t if scale == 1 else t * scale
        if "timestep" in names:
            return network(x, timestep=time, **conditions, **tells)
        return network(x, time, **conditions, **tells)

    return call
