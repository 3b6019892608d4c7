"""Public names of gms_fast: `__all__` of the package and of its modules."""

import importlib
from types import FunctionType
from typing import Any

import gms_fast

ROOMS = (
    *("data", "editing", "guidance", "models", "ops", "recommendation", "schedules", "search", "solvers"),
    *("statistics", "training", "integrations.diffusers", "integrations.k_diffusion"),
)


def public() -> dict[str, Any]:
    """Return the public functions and classes by their full names; some have two."""
    found = {f"gms_fast.{name}": getattr(gms_fast, name) for name in gms_fast.__all__}
    for room in ROOMS:
        module = importlib.import_module(f"gms_fast.{room}")
        found |= {f"gms_fast.{room}.{name}": getattr(module, name) for name in module.__all__}
    return {name: value for name, value in found.items() if isinstance(value, (FunctionType, type))}


def distinct() -> dict[str, Any]:
    """Return the same, each function and class by its first name."""
    found: dict[int, tuple[str, Any]] = {}
    for name, value in public().items():
        found.setdefault(id(value), (name, value))
    return dict(found.values())
