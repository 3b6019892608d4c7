"""Load and save models: folders of this package, and released checkpoint files."""

import inspect
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict, overload

import torch
from torch import Tensor

from gms_fast import schedules
from gms_fast.models import released, saved_heads
from gms_fast.models.hosts import diffusers as host
from gms_fast.models.moment_heads import MomentHeads
from gms_fast.models.unet import ARGUMENTS, MomentUNet
from gms_fast.models.wrap import wrap
from gms_fast.schedules import Schedule, VPLinear
from gms_fast.storage import atomic, schema, tensors
from gms_fast.storage.reading import json_value, refusing, whole_text
from gms_fast.storage.schema import Choice, Fields, Plain, Text
from gms_fast.storage.tensors import check_numbers, few
from gms_fast.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Unpack

WEIGHTS, CONFIG, KIND = "model.safetensors", "config.json", "MomentUNet"
EMBEDDED = ("mnist", "digits")
_DESCRIPTION = Fields(
    {"kind": Choice((KIND,)), "config": Fields({}, ARGUMENTS), "schedule": Plain()}, {"gms_fast": Text(100)}
)
_DEFAULTS = {name: given.default for name, given in inspect.signature(MomentUNet).parameters.items()}
_INDEX = "model_index.json"  # of a diffusers pipeline
_TRIES = 100  # attempts to open a folder that another process replaces meanwhile


class Overrides(TypedDict, total=False):
    """Arguments of `MomentUNet`, where the schedule may also be a name or a config."""

    image_size: int
    in_channels: int
    model_channels: int
    channel_mult: Sequence[int]
    num_res_blocks: int
    attention_resolutions: Sequence[int]
    num_heads: int
    dropout: float
    use_scale_shift_norm: bool
    head: str | Sequence[str | None] | None
    out_channels: int | None
    moments: str
    normalised: bool
    schedule: Schedule | str | dict[str, object] | None
    num_classes: int | None
    null_class: bool


def embedded() -> list[str]:
    """Return the names of the embedded models in this installation."""
    return [name for name in EMBEDDED if (_embedded_folder(name) / WEIGHTS).is_file()]


def save(model: MomentUNet, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Save a model to a folder: weights (`model.safetensors`) and config (`config.json`).

    If the folder already contains a saved model, both files are replaced together.

    Args:
        model: [`MomentUNet`][gms_fast.models.MomentUNet] to save.
        path: Folder to write to. It may be new or empty, or contain a previously saved model and nothing else.
        dtype: Floating-point dtype of the stored weights. For example, torch.float16 halves the file size. By default,
            every weight keeps its dtype. [`load`][gms_fast.load] always returns float32.

    Raises:
        FileExistsError: If `path` is a file, or a folder that contains other files.
        TypeError: If `model` is not a MomentUNet, or if `dtype` is not a floating-point dtype.
        ValueError: If `dtype` cannot represent the weights.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> gms_fast.save(model, "digits-half", dtype=torch.float16)
        >>> gms_fast.sample(gms_fast.load("digits-half"), 5, n=2).shape
        torch.Size([2, 1, 8, 8])
    """
    if not isinstance(model, MomentUNet):
        raise TypeError(f"model must be a MomentUNet: got {type(model).__name__}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating-point torch.dtype or None: got {dtype!r}")
    path = Path(path)
    check_target(atomic.present(path))
    if strange := [n for n, w in model.state_dict().items() if not w.is_floating_point()]:
        raise ValueError(f"model has weights that are not floating-point numbers: {few(strange)}")
    weights = {n: w.detach().to("cpu", dtype).contiguous() for n, w in model.state_dict().items()}
    overflown = [n for n, w in weights.items() if not torch.isfinite(w).all()]
    if overflown:
        raise ValueError(f"model has weights that are not finite as {weights[overflown[0]].dtype}: {few(overflown)}")
    config = {"kind": KIND, "gms_fast": __version__, "config": model.config, "schedule": model.schedule.config}
    with atomic.writing_folder(path) as folder:
        tensors.write(folder / WEIGHTS, weights, {})
        atomic.write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def check_target(path: Path) -> None:
    """Raise FileExistsError unless `save` may write to `path`.

    The path may be missing, an empty folder, or a folder that contains only a saved model.
    """
    if not path.exists():
        return
    found = {p.name for p in path.iterdir()} if path.is_dir() else {path.name}
    if found - {WEIGHTS, CONFIG} or (found and CONFIG not in found):
        raise FileExistsError(f"path: {path} exists and is not a saved model: it holds {few(found)}")


def network(path: str | Path, *, schedule: Schedule | str | None = None, prediction: str | None = None) -> Any:
    """Load a network for training moment heads, in eval mode, on the CPU.

    The network's attribute `source` records how to load it again.

    path: folder written by diffusers, or any argument that `load` accepts. The folder holds a network, or a pipeline,
        of which only the network and the scheduler are read.
    schedule, prediction: needed for a diffusers network without a scheduler.
    Raises the same errors as `load`.
    """
    folder = atomic.present(path)
    if host.is_folder(folder):
        found: Any = wrap(host.load(folder), schedule=schedule, prediction=prediction)
    elif prediction is not None:
        raise ValueError(
            f"prediction must be None except for diffusers networks: {path} predicts noise, got {prediction!r}"
        )
    else:
        found = load(path) if schedule is None else load(path, schedule=schedule)
    place = str(path) if path in EMBEDDED else str(folder.resolve())
    said = schedule.described if isinstance(schedule, Schedule) else schedule
    found.source = {"path": place, "schedule": said, "prediction": prediction}
    if isinstance(schedule, Schedule) and isinstance(said, str):  # without a config it cannot be rebuilt
        found.source = None
    return found


def heads(folder: str | Path) -> MomentHeads:
    """Load the heads in a folder together with the network that they were trained on.

    Raises FileNotFoundError if the network is no longer where it was. In that case, load the network yourself and use
    `MomentHeads.from_pretrained(folder, network)`.
    """
    _, said = saved_heads.read(folder)
    source = said["source"]
    if source is None or not (source["path"] in EMBEDDED or atomic.present(source["path"]).exists()):
        where = "the heads do not record where it is" if source is None else f"nothing exists at {source['path']}"
        raise FileNotFoundError(
            f"the network of the moment heads in {folder} is missing: {where}; pass it to MomentHeads.from_pretrained"
        )
    found = MomentHeads.from_pretrained(folder, network(**source))
    found.origin = str(Path(folder).resolve())
    return found


@overload
def load(name_or_path: str | Path = "mnist") -> Any: ...


@overload
def load(name_or_path: str | Path = "mnist", **overrides: "Unpack[Overrides]") -> MomentUNet: ...


def load(name_or_path: str | Path = "mnist", **overrides: "Unpack[Overrides]") -> MomentUNet | MomentHeads:
    """Load an embedded model, a model folder, or a released checkpoint file.

    Args:
        name_or_path: Name of an embedded model ("mnist" or "digits"); path of a folder written by
            [`save`][gms_fast.save] or by `MomentHeads.save_pretrained`; or path of a checkpoint file released for
            improved DDPM or GMS (see `gms_fast.models.released`).
        **overrides: Arguments of [`MomentUNet`][gms_fast.models.MomentUNet] that replace the stored or inferred values.
            Some of them cannot be inferred from a released checkpoint file. For such a file, the defaults are
            `num_heads` 4, `image_size` 32, `dropout` 0, `moments` "raw" and `schedule` VPLinear(). `schedule` may also
            be a name or a config. If the given schedule does not set `rescale_time`, the network times remain those
            that the network was trained on: the network times of the stored schedule, or 1000 t/T if no schedule is
            stored.

    Returns:
        MomentUNet in eval mode, in float32, on the CPU. A folder of moment heads gives MomentHeads with their network.

    Raises:
        FileNotFoundError: If nothing exists at `name_or_path`, or if the network of the moment heads is missing.
        TypeError: If an override is not an argument of `MomentUNet`, or if overrides are given for moment heads.
        ValueError: If a file is truncated or has an unsupported format (the message says what the file seems to be), or
            if weights are missing, unexpected or of the wrong shape (the message names them).

    Examples:
        >>> model = gms_fast.load("digits")
        >>> model.sample_shape, model.schedule
        ((1, 8, 8), VPLinear(T=1000))
        >>> gms_fast.load("digits", schedule="cosine").schedule
        VPCosine(T=1000)
    """
    allowed = list(inspect.signature(MomentUNet).parameters)
    if unknown := overrides.keys() - set(allowed):
        raise TypeError(
            f"load got unknown overrides {few(unknown)}: the arguments of MomentUNet are {', '.join(allowed)}"
        )
    path = atomic.present(name_or_path)
    if name_or_path in EMBEDDED:
        if name_or_path not in embedded():
            raise FileNotFoundError(f"model {name_or_path!r} is missing from this installation: reinstall gms_fast")
        path = _embedded_folder(str(name_or_path))
    elif not path.exists():
        known = ", ".join(EMBEDDED)
        raise FileNotFoundError(
            f"model must be one of {known}, a folder written by gms_fast.save or a checkpoint file: "
            f"nothing exists at {name_or_path}"
        )
    if (path / saved_heads.FILE).is_file():
        if overrides:
            raise TypeError(f"load got overrides {few(overrides)}: the moment heads in {path} accept none")
        return heads(path)
    weights, config = _read_folder(path) if path.is_dir() else _read_file(path)
    units = config.get("normalised", False)
    if overrides.get("normalised", units) != units:
        raise ValueError(
            f"normalised must be {units}, as in the training of {name_or_path}: got {overrides['normalised']!r}"
        )
    if (schedule := overrides.pop("schedule", None)) is not None:
        overrides["schedule"] = _asking(schedule, config["schedule"])
    model = _assemble(weights, {**config, **overrides}, str(name_or_path))
    model.origin = str(name_or_path) if name_or_path in EMBEDDED else str(path.resolve()) if path.is_dir() else None
    return model


def _asking(given: object, own: Schedule) -> Schedule:
    """Return the given schedule with the network times of `own`, those of the training."""
    if not isinstance(given, (Schedule, str, dict)):
        raise TypeError(f"schedule must be a Schedule, its name or its config: got {given!r}")
    return schedules.rescaled(schedules.build(given).asked_like(own))


def _embedded_folder(name: str) -> Path:
    return Path(str(resources.files("gms_fast.models") / name))


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    weights = released.read(path)
    with refusing(f"checkpoint {path}", path):
        found = {**released.architecture(weights), "schedule": schedules.rescaled(VPLinear())}
    check_numbers(weights, f"checkpoint {path}")
    return weights, found


def _refuse_foreign(folder: Path, described: object, kind: str) -> None:
    """Raise ValueError if the description is that of a diffusers folder."""
    if isinstance(described, dict) and "_class_name" in described:
        kind = f"a diffusers {kind}, {schema.short(described['_class_name'])[1:-1]}"
        raise ValueError(f"model folder {folder} seems to be {kind}: {released.ELSEWHERE}")


def _read_folder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with ExitStack() as held:
        folder, files = _opened(path, held)
        described = {}
        for name, kind in {_INDEX: "pipeline", CONFIG: "model"}.items():
            if name in files:
                with refusing(f"{folder / name} does not describe a model", folder):
                    described[name] = json_value(whole_text(files[name]))
                    _refuse_foreign(folder, described[name], kind)
        for name in (CONFIG, WEIGHTS):
            if name not in files:
                said = f"model folder {folder} has no {name}: gms_fast.save did not write it"
                raise FileNotFoundError(said)
        with refusing(f"{folder / CONFIG} does not describe a model", folder):
            schema.check("", described[CONFIG], _DESCRIPTION)
            schedule = schedules.stored(described[CONFIG]["schedule"])
        file, config = folder / WEIGHTS, {**described[CONFIG]["config"], "schedule": schedule}
        with refusing(f"{file} is truncated or not a safetensors file", file):
            weights = tensors.load_open(files[WEIGHTS])[0]
    with refusing(f"{file} does not match {CONFIG}", file):
        _check_agreement(config, released.architecture(weights))
    check_numbers(weights, str(file))
    return weights, config


def _opened(path: Path, held: ExitStack) -> tuple[Path, dict[str, BinaryIO]]:
    """Open the files of a folder, all from one save though another process may replace it."""
    for _ in range(_TRIES):
        folder = atomic.present(path)
        files: dict[str, BinaryIO] = {}
        before = _identity(folder)
        for name in (_INDEX, CONFIG, WEIGHTS):
            with suppress(FileNotFoundError):
                files[name] = held.enter_context((folder / name).open("rb"))
        if _identity(atomic.present(path)) == before:
            return folder, files
        held.close()
    raise ValueError(f"model folder {path} kept changing while it was opened {_TRIES} times: retry after the save")


def _identity(folder: Path) -> tuple[int, int, int] | None:
    """Return numbers that distinguish a folder from one that replaced it."""
    with suppress(FileNotFoundError):
        found = os.stat(folder)
        return found.st_dev, found.st_ino, found.st_mtime_ns
    return None


def _check_agreement(said: dict[str, Any], seen: dict[str, Any]) -> None:
    """Raise ValueError if the description of a network contradicts its weights.

    The description decides how large the network is, so it is checked before one is built.
    """
    factors = [2**i for i in range(len(seen["channel_mult"]))]
    if seen["num_classes"] and said.get("null_class", True):  # the weights do not show which rows stand for "no class"
        seen = {**seen, "num_classes": seen["num_classes"] - 1, "null_class": True}
    for key, value in seen.items():
        got = said.get(key, _DEFAULTS[key])
        if key == "attention_resolutions":  # other values have no effect
            got = sorted(set(got) & set(factors))
        elif key == "head":
            got, value = _pair(got), _pair(value)
        elif key == "out_channels":
            got = seen["in_channels"] if got is None else got
        if (list(got) if isinstance(got, tuple) else got) != value:
            raise ValueError(f"{key} is {schema.short(got)}, but {schema.short(value)} according to the weights")


def _pair(head: object) -> list[object]:
    return list(head) if isinstance(head, (list, tuple)) else [head, head]


def _assemble(weights: dict[str, Tensor], config: dict[str, Any], origin: str) -> MomentUNet:
    with (
        refusing(f"model {origin}", origin),
        torch.device("meta"),
    ):  # spends no time and no random numbers on weights that are replaced below
        model = MomentUNet(**config)
    _check_weights(weights, model.state_dict(), origin)
    # copied, because views of one large buffer would keep all of it in memory
    weights = {n: w.to(torch.float32, copy=True, memory_format=torch.contiguous_format) for n, w in weights.items()}
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(True).eval()


def _check_weights(got: dict[str, Tensor], wanted: dict[str, Tensor], origin: str) -> None:
    """Raise ValueError listing weights that are missing, unexpected or of another shape."""
    missing, unexpected = wanted.keys() - got.keys(), got.keys() - wanted.keys()
    shapes = [
        f"{n} is {tuple(got[n].shape)}, wanted {tuple(wanted[n].shape)}"
        for n in sorted(wanted.keys() & got.keys())
        if got[n].shape != wanted[n].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": shapes}
    found = [f"{len(list(names))} {what}: {few(names)}" for what, names in problems.items() if names]
    if found:
        raise ValueError(f"weights of {origin} do not fit the network: " + "; ".join(found))
