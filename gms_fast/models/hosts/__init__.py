"""Adapters for networks of other libraries.

Each kind has its own module with the functions `recognises` and `host`.
"""

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
    """Return the kinds of network."""
    return list(_KINDS)


def known(bare: object) -> bool:
    """Return True for a network of one of these kinds."""
    return any(host.recognises(bare) for host in _KINDS.values())


def of_kind(kind: str | None, bare: object) -> ModuleType:
    """Return the adapter of a kind; of the network's own kind for None.

    Raises ValueError for an unknown kind or network.
    """
    if kind in _KINDS:
        return _KINDS[kind]
    wanted = f"one of {', '.join(_KINDS)}"
    if kind is not None:
        raise ValueError(f"kind must be {wanted}, or None: got {kind!r}")
    found = next((host for host in _KINDS.values() if host.recognises(bare)), None)
    if found is None:
        raise ValueError(
            f"kind must be given, {wanted}: wrap does not recognise a network of class {type(bare).__name__}"
        )
    return found
