"""Files of moment heads: the heads alone, with a fingerprint of the network they belong to."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gms_fast import schedules
from gms_fast.assumptions import MOMENTS
from gms_fast.schedules import Schedule
from gms_fast.storage import atomic, fingerprints, tensors
from gms_fast.storage.reading import metadata, refusing
from gms_fast.storage.schema import Choice, Either, Fields, Flag, Integer, Listed, Optional, Plain, Real, Text, Want

FILE, FORMAT = "moment_heads.safetensors", "gms_fast moment heads 1"
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # in which a network may be loaded
_CONFIG = Fields(
    {
        "features": Text(),
        "head": Choice(("simple", "complex")),
        "layout": Fields(
            {
                "kind": Choice(("map", "tokens", "last")),
                "features": Integer(1, 1 << 20),
                "patch": Integer(1, 1 << 10),
                "of_moments": Flag(),
            }
        ),
        "moments": Choice(MOMENTS),
        "normalised": Flag(),
        "data_std": Real(0),
        "clip": Optional(Listed(Real(), 2, 2)),
        "prediction": Text(),
        "sample_shape": Listed(Integer(1, 1 << 20), 4, 1),
    }
)
_SCHEDULE = Either(Fields({"name": Text()}, others=Plain()), Text(4096))
_SAID: dict[str, Want] = {
    "config": _CONFIG,
    "schedule": _SCHEDULE,
    "network": Fields({}, others=Text()),
    "record": Optional(Fields({}, others=Plain())),
    "source": Optional(Fields({"path": Text(4096), "schedule": Optional(_SCHEDULE), "prediction": Optional(Text())})),
}


def fingerprint(network: nn.Module) -> dict[str, str]:
    """Return digests of a network's weights and buffers, by dtype.

    They cover the dtype of the network and every narrower one in which it may be loaded.
    """
    found = {n: w for n, w in network.state_dict().items() if isinstance(w, Tensor)}
    own = _narrowest(found)
    known = [dtype for dtype in _DTYPES if dtype.itemsize < own.itemsize] if own.itemsize > 2 else []
    return {str(dtype): fingerprints.of_named({n: _as(w, dtype) for n, w in found.items()}) for dtype in (own, *known)}


def _narrowest(weights: dict[str, Tensor]) -> torch.dtype:
    dtypes = (w.dtype for w in weights.values() if w.is_floating_point())
    return min(dtypes, key=lambda dtype: dtype.itemsize, default=torch.float32)


def _as(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) if weight.is_floating_point() else weight


def check_network(network: nn.Module, known: dict[str, str], where: Path) -> None:
    """Raise ValueError unless a network has one of the known digests, in any dtype."""
    ours = fingerprint(network)
    if not any(known.get(dtype) == digits for dtype, digits in ours.items()):
        raise ValueError(
            f"network must be the one that the heads of {where} were trained on: this {type(network).__name__} has "
            f"other weights ({next(iter(ours.values()))}, wanted {next(iter(known.values()), 'none')})"
        )


def write(folder: Path, weights: dict[str, Tensor], said: dict[str, Any]) -> None:
    """Write the file of heads to a folder.

    Raises ValueError for weights that are NaN or infinite.
    """
    tensors.check_numbers(weights, "heads")
    folder.mkdir(parents=True, exist_ok=True)
    tensors.write_described(folder / FILE, weights, FORMAT, said)


def read(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and check the weights of the heads in a folder, and their description."""
    path = atomic.present(folder) / FILE
    weights, found = tensors.read(path, FORMAT, None, _SAID, what="moment heads")
    with refusing(f"moment heads {path}", path):
        return weights, metadata(found, _SAID)


def schedule_of(said: object, own: Schedule | None, where: str | Path) -> Schedule:
    """Return the noise schedule of the training.

    Raises ValueError where the network has another one, or where the file cannot describe it and the network has none.
    """
    if isinstance(said, str):
        if own is None or repr(own) != said:
            raise ValueError(f"schedule must be the one that {where} was trained with, {said}: got {own!r}")
        return own
    assert isinstance(said, dict)
    stored = schedules.stored(said)
    if own is not None and not own.agrees(stored, _some(stored)):
        raise ValueError(f"schedule must be the one that {where} was trained with, {stored!r}: the network has {own!r}")
    return stored


def _some(schedule: Schedule) -> list[float]:
    """Return a few times of a schedule."""
    whole = schedule.whole_times
    times: list[float] = (schedule.grid(7, "uniform") if whole is None else whole[:: max(1, len(whole) // 7)]).tolist()
    return times
