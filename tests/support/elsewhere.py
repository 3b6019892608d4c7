"""Simulated device that is neither a CPU nor CUDA; its tensors wrap CPU tensors.

It has the limits of such devices: no float64, no float64 number of the host beside its own tensors, and no conversion
to float64 on the way to the host. An op of this package runs by the kernel registered for the device.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME, KEY = "lazy", torch._C.DispatchKey.Lazy  # the one device type that torch accepts without a backend
WIDE = (torch.float64, torch.complex128)
COPIES = ("aten::_to_copy", "aten::copy_")  # these may mix devices


class Elsewhere(Tensor):
    """Tensor on the device; `raw` holds its values."""

    @staticmethod
    def __new__(cls, raw: Tensor):
        if raw.dtype in WIDE:
            raise RuntimeError(f"there is no {raw.dtype} on {NAME}")
        options = {"dtype": raw.dtype, "device": NAME, "strides": raw.stride()}
        made = torch.Tensor._make_wrapper_subclass(cls, raw.shape, **options)
        made.raw = raw
        return made

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        with Device():
            return op(*args, **(kwargs or {}))


class Device(TorchDispatchMode):
    """Mode that provides the device: `with Device():`, also for new tensors."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        own = [v for v in tensors if isinstance(v, Elsewhere)]
        given = kwargs.get("device")
        there = bool(own) if given is None else torch.device(given).type == NAME
        if op.namespace == "gms_fast" and there:
            with self:
                return op.redispatch(torch._C.DispatchKeySet(KEY), *args, **kwargs)
        if own or there:
            _check(op, tensors, own, kwargs)
        if given is not None and there:
            kwargs = kwargs | {"device": "cpu"}
        held = {id(v.raw): v for v in own}
        result = op(*tree_map(_raw, args), **tree_map(_raw, kwargs))

        def placed(value):
            if id(value) in held:
                return held[id(value)]
            return Elsewhere(value) if there and isinstance(value, Tensor) else value

        return tree_map(placed, result)


def _check(op, tensors: list[Tensor], own: list[Tensor], kwargs: dict) -> None:
    """Raise RuntimeError for operations that the device lacks."""
    host = [v for v in tensors if not isinstance(v, Elsewhere)]
    if own and op._schema.name not in COPIES and any(v.ndim or v.dtype in WIDE for v in host):
        raise RuntimeError(f"{op}: tensors of {NAME} beside {[(v.device, v.dtype, v.ndim) for v in host]}")
    into = tensors[0].dtype if op._schema.name == "aten::copy_" else kwargs.get("dtype")
    if into in WIDE:
        raise RuntimeError(f"{op}: there is no {into} on {NAME}")


def _raw(value):
    return value.raw if isinstance(value, Elsewhere) else value
