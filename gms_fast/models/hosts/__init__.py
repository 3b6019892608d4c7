"""Adapters for networks of other libraries: one file for each kind, `recognises` and `host` in each."""

from types import ModuleType

from gms_fast.models.hosts import azula, denoising_diffusion, diffusers, dit, edm, guided_diffusion
from gms_fast.models.hosts.base import Host as Host

_KINDS: dict[str, ModuleType] = {
    "diffusers": diffusers,
    "edm": edm,
    "guided-diffusion": guided_diffusion,
    "dit": dit,
    "denoising-diffusion": denoising_diffusion,
    "azula": azula,
}


def names() -> list[str]:
    """The kinds of network."""
    return list(_KINDS)


def known(bare: object) -> bool:
    """Tell a network of one of these kinds."""
    return any(host.recognises(bare) for host in _KINDS.values())


def of_kind(kind: str | None, bare: object) -> ModuleType:
    """The file of a kind, or of the kind that a network is of. Raises ValueError for neither."""
    if kind in _KINDS:
        return _KINDS[kind]
    wanted = f"one of {', '.join(_KINDS)}"
    if kind is not None:
        raise ValueError(f"kind must be {wanted}, or None: got {kind!r}")
    found = next((host for host in _KINDS.values() if host.recognises(bare)), None)
    if found is None:
        raise ValueError(f"kind must be given, {wanted}: a network of class {type(bare).__name__} does not tell it")
    return found
