"""Evaluations of a network: its dtype, its network times, and no writes to the state."""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from gms_fast.assumptions import attribute, layers
from gms_fast.prediction import Guided
from gms_fast.types import NoiseMoments

Model = Callable[..., Any]
ARITHMETIC = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # widest first
_OF_TYPES = re.compile(r"d?type", re.IGNORECASE)
_OF_INDICES = re.compile(r"ind(ex|ices)", re.IGNORECASE)
_OUTSIDE = re.compile(r"out of (range|bounds)")


def weights_of(model: object) -> Iterator[Tensor]:
    """Yield the parameters of a model, also from inside wrappers that change nothing."""
    for layer in [model] if torch.compiler.is_compiling() else layers(model):
        if isinstance(layer, torch.nn.Module):
            yield from layer.parameters()
            return


def weight_of(model: object) -> Tensor | None:
    """Return one parameter of the model, or None."""
    for weight in weights_of(model):  # torch 2.8 cannot compile next(.., None)
        return weight
    return None


def device_of(model: object) -> torch.device | None:
    """Return the device of the model's parameters, or None if it has none.

    Raises ValueError if the parameters are offloaded.
    """
    weight = weight_of(model)
    if weight is not None and weight.is_meta:
        raise ValueError("device must be given: the model's parameters are offloaded (on the meta device)")
    return None if weight is None else weight.device


def dtypes_of(model: object, x: Tensor) -> list[torch.dtype]:
    """Return the dtypes to try for x, first choice first.

    Under autocast it is x's own. Otherwise the model's attribute `dtype` comes first, then the dtypes of its
    floating-point parameters. The widest comes first, because narrow layers cast their input and wide layers
    do not. Integers and float8 are storage formats.
    """
    kind = x.device.type
    if (kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)) and torch.is_autocast_enabled(kind):
        return [x.dtype]
    said = attribute(model, "dtype")
    found = {weight.dtype for weight in weights_of(model)}
    wanted = [said] if said in ARITHMETIC else []
    wanted += [dtype for dtype in ARITHMETIC if dtype in found and dtype not in wanted]
    return wanted if x.dtype in wanted or len(wanted) == 1 else [*wanted, x.dtype]


class Network:
    """Model as the sampling loop calls it.

    Args:
        model: Callable `(x, t, **condition)`.
        batch_size: Largest number of samples in one call; None: all.
        condition: Keyword arguments of each call. Tensors with as many rows as the state are split along with it.
        apart: Whether a guided model returns both outputs (`outputs`) instead of their combination.
        guarded: Whether the state is protected from a network that writes to its input; not for derivatives.
    """

    def __init__(
        self,
        model: Callable[..., Tensor | NoiseMoments],
        *,
        batch_size: int | None = None,
        condition: dict[str, Any] | None = None,
        apart: bool = False,
        guarded: bool = True,
    ) -> None:
        self.model, self.batch_size, self.condition, self.guarded = model, batch_size, condition or {}, guarded
        compiling = torch.compiler.is_compiling()  # a compiler fuses guidance and drops unused heads itself
        self._said = own_way(model, "outputs") if apart and not compiling else model
        self._first = self._said if compiling else self._asked_first()
        self._kept_ones = [] if compiling else _tensors(self.condition)
        self._dtype: torch.dtype | None = None  # found by the first call, like the next two
        self._whole = False
        self._writes: dict[bool, bool] = {}  # by whether all moments are computed

    def _asked_first(self) -> Model:
        """Return the call that gives E[eps|x_t] alone, if the model has one for this condition.

        Otherwise it is the call for all moments.
        """
        led = self._said is not self.model
        found = own_way(self.model, "first_outputs" if led else "first_moment")
        if found is self.model or (self.condition and not takes_keywords(found)):
            return self._said
        return found

    @property
    def has_first(self) -> bool:
        """Tell whether the model has a cheaper call for E[eps|x_t] alone."""
        return self._first is not self._said

    def __call__(self, x: Tensor, time: float | Tensor, *, first: bool = False) -> Any:
        """Return the model's output at x (B, *).

        time: one network time for all, or (B,). first: only E[eps|x_t] is needed.
        """
        said = self._first if first else self._said
        if self.batch_size is None or len(x) <= self.batch_size:
            return self._in_dtype(said, x, time, self.condition)
        outputs = []
        for start in range(0, len(x), self.batch_size):
            stop = min(start + self.batch_size, len(x))
            t = time[start:stop] if isinstance(time, Tensor) else time
            outputs.append(self._in_dtype(said, x[start:stop], t, _rows(self.condition, start, stop, len(x))))
        return _joined(outputs)

    def _in_dtype(self, said: Model, x: Tensor, time: float | Tensor, condition: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():
            given = x.to(dtypes_of(self.model, x)[0])
            return said(given.clone() if given is x else given, _times(x, time), **condition)
        if self._dtype is not None:
            return self._at(said, x, self._dtype, time, condition)
        dtypes = dtypes_of(self.model, x)
        failed: RuntimeError | None = None
        for dtype in dtypes:
            try:
                output = self._at(said, x, dtype, time, condition)
            except RuntimeError as error:  # noqa: PERF203 - each dtype needs its own try
                if len(dtypes) == 1 or not _OF_TYPES.search(str(error)):
                    raise
                failed = failed or error
            else:
                self._dtype = dtype
                return output
        raise ValueError(
            f"model accepts x in none of {', '.join(map(str, dtypes))}, the dtypes of its parameters and of the state: "
            f"cast x inside the model, or call sample under torch.autocast ({failed})"
        ) from failed

    def _at(self, said: Model, x: Tensor, dtype: torch.dtype, time: float | Tensor, condition: dict[str, Any]) -> Any:
        """Return the output; whole times become integers if the network looks them up in a table."""
        t = _times(x, time)
        try:
            return self._kept(said, x, dtype, t.long() if self._whole else t, condition)
        except (IndexError, RuntimeError, TypeError) as error:
            if not _OF_INDICES.search(str(error)):
                raise
            if self._whole or _OUTSIDE.search(str(error)) or bool((t % 1 != 0).any()):
                raise ValueError(
                    f"model failed at network time {_listed(t)}: {error}. If it looks times up in a table, the table "
                    "has only the integer times of its own schedule: check rescale_time= of the schedule and timesteps="
                ) from error
        self._whole = True
        return self._at(said, x, dtype, time, condition)

    def _kept(self, said: Model, x: Tensor, dtype: torch.dtype, t: Tensor, condition: dict[str, Any]) -> Any:
        """Return the output; a network that writes to its input gets a copy."""
        given = x if x.dtype is dtype else x.to(dtype)
        if not self.guarded:
            return said(given, t, **condition)
        tensors = self._kept_ones if condition is self.condition else _tensors(condition)
        versions = [tensor._version for tensor in tensors]
        own = given is not x
        whole = said is self._said
        writes = self._writes.get(whole)
        if not own and (writes is not False or x.is_inference()):
            given, own = x.clone(), True
        before = -1 if given.is_inference() else given._version
        output = said(given, t, **condition)
        wrote = before >= 0 and given._version != before
        if writes is None and given.dtype == x.dtype:
            self._writes[whole] = wrote or (x.device.type == "cpu" and not bool((given == x).all()))
        if (wrote and not own) or [tensor._version for tensor in tensors] != versions:
            raise ValueError("model modified its input, x or a condition, in place: let it modify a copy")
        return output


def own_way(model: Model, name: str) -> Model:
    """Return the model's method of that name if a call of the model would run nothing else.

    Wrappers, hooks, compilers, and a `forward` of another class than the method's all rule it out. Then the
    result is the model itself.
    """
    owner, called = _owner(type(model), name), "__call__"
    if isinstance(model, torch.nn.Module):
        called = "forward"
        if "forward" in vars(model) or _hooked(model) or getattr(model, "_compiled_call_impl", None) is not None:
            return model
    if owner is None or owner is not _owner(type(model), called):
        return model
    made_in = [getattr(vars(owner)[each], "__qualname__", each).rpartition(".")[0] for each in (name, called)]
    found: Model = getattr(model, name) if made_in[0] == made_in[1] else model  # else one of the two was replaced
    return found


def takes_keywords(call: Callable[..., Any]) -> bool:
    """Tell whether a callable accepts any keyword argument."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(call).parameters.values())


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _hooked(model: torch.nn.Module) -> bool:
    return any(getattr(model, name, None) for name in _HOOKS) or any(
        getattr(torch.nn.modules.module, f"_global{name}", None) for name in _HOOKS
    )


def _owner(kind: type, name: str) -> type | None:
    """Return the class that defines a method."""
    return next((base for base in kind.__mro__ if name in vars(base)), None)


def call(
    model: Callable[[Tensor, Tensor], Tensor | NoiseMoments], x: Tensor, time: Tensor, *, first: bool = False
) -> Tensor | NoiseMoments:
    """Return the model's output at x (B, *) and times (B,), from one unguarded call."""
    return Network(model, guarded=False)(x, time, first=first)


def _times(x: Tensor, time: float | Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return time if isinstance(time, Tensor) else torch.full((len(x),), time, dtype=wide, device=x.device)


def _tensors(condition: dict[str, Any]) -> list[Tensor]:
    """Return the tensors among keyword arguments whose version counter shows writes."""
    return [value for value in condition.values() if isinstance(value, Tensor) and not value.is_inference()]


def _listed(t: Tensor) -> str:
    return ", ".join(f"{v:g}" for v in t.unique().tolist()[:5])


def _rows(value: Any, start: int, stop: int, samples: int) -> Any:
    if isinstance(value, dict):
        return {name: _rows(part, start, stop, samples) for name, part in value.items()}
    if isinstance(value, Tensor) and value.ndim and len(value) == samples:
        return value[start:stop]
    return value


def _joined(outputs: Iterable[Any]) -> Any:
    """Join the outputs of parts of a batch.

    For an invalid output return the first one, which is refused where outputs are checked.
    """
    first, *_ = outputs = list(outputs)
    if isinstance(first, Guided):
        conditional, unconditional, _ = zip(*outputs, strict=True)
        return Guided(_joined(conditional), _joined(unconditional), first.scale)
    if isinstance(first, Tensor):
        return torch.cat(outputs)
    if not isinstance(first, tuple) or not all(isinstance(e, Tensor) or e is None for e in first):
        return first
    parts: list[Any] = [None if e[0] is None else torch.cat(e) for e in zip(*outputs, strict=True)]
    return NoiseMoments(*parts) if len(parts) == len(NoiseMoments._fields) else tuple(parts)
