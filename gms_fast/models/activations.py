"""Activations inside a network: the module that receives them, their layout, and a watch."""

import difflib
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def module_of(network: object, name: object) -> nn.Module:
    """Return the module with this name.

    Raises TypeError or ValueError naming `features`, with the closest names that exist.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module with modules inside: got {type(network).__name__}")
    names = [known for known, _ in network.named_modules() if known]
    if name in names:
        return network.get_submodule(str(name))
    near = difflib.get_close_matches(str(name), names, 5, 0.4) or names[-5:]
    raise ValueError(
        f"features must be the name of a module of {type(network).__name__}, whose input the heads read: got {name!r}; "
        f"the closest names are {', '.join(near)}"
    )


_CALLS = threading.RLock()  # one for all networks: a lock inside a network could not be copied with it


class Watch:
    """Recorder of a module's input during a call of its network."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[Tensor] | None = None

    def put_on(self, module: nn.Module) -> RemovableHandle:
        """Record the module's input during calls, until the handle is removed."""
        return module.register_forward_pre_hook(self._note, with_kwargs=True)

    def during(self, call: Callable[[], Any]) -> tuple[Any, list[Tensor]]:
        """Return the result of a call and the module's inputs in it, one thread at a time."""
        if torch.compiler.is_compiling():
            return self._during(call)
        with _CALLS:
            return self._during(call)

    def _during(self, call: Callable[[], Any]) -> tuple[Any, list[Tensor]]:
        seen: list[Tensor] = []
        self.seen = seen
        try:
            return call(), seen
        finally:
            self.seen = None

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.seen is not None:
            self.seen += [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)][:1]

    def one(self, seen: list[Tensor]) -> Tensor:
        """Return the only recorded tensor.

        Raises ValueError for none and for several.
        """
        if len(seen) != 1:
            raise ValueError(
                f"features must be a module that runs once per network call, on a tensor: {self.name!r} was "
                f"called {len(seen)} times; if the network was compiled, add the heads before torch.compile"
            )
        return seen[0]


class Layout(NamedTuple):
    """Layout of the activations of a sample in relation to the sample.

    Args:
        kind: "map": (F, *grid). "tokens": (N, F) of a grid in row-major order. "last": (*, F) beside samples (*, C).
        features: Number of features F.
        patch: Elements of the sample along each axis per position of the grid.
        of_moments: True if the network returns moments of the noise, of which only the first is used.
    """

    kind: str
    features: int
    patch: int
    of_moments: bool = False

    @classmethod
    def of(cls, name: str, module: nn.Module, h: Sequence[int], x: Sequence[int]) -> "Layout":
        """Infer the layout of activations of shape `h` in a network for samples of shape `x`.

        Raises ValueError naming `features` where the shapes do not fit.
        """
        h, x = tuple(h), tuple(x)
        last = isinstance(_first_leaf(module), (nn.Linear, nn.LayerNorm, nn.RMSNorm))
        if len(h) == len(x) and last and h[:-1] == x[:-1]:
            return cls("last" if len(h) > 1 else "map", h[-1], 1)
        if len(h) == len(x) and not last and (patch := _ratio(h[1:], x[1:])):
            return cls("map", h[0], patch)
        axes = len(x) - 1
        if len(h) == 2 and axes:
            patch = round((math.prod(x[1:]) / h[0]) ** (1 / axes))
            if patch and h[0] * patch**axes == math.prod(x[1:]) and not any(side % patch for side in x[1:]):
                return cls("tokens", h[1], patch)
        raise ValueError(
            f"features must be activations (F, *grid) or (tokens, F), on a grid that divides samples {x} evenly: "
            f"the input of {name!r} is {h}"
        )

    def parts(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split outputs of both heads on the grid into two tensors like the samples x.

        `y` is (B, 2C patch^d, *grid), or the same with channels last.
        """
        if self.kind == "last":
            first, second = y.chunk(2, dim=-1)
            return first, second
        if self.kind == "tokens":
            y = y.transpose(1, 2).reshape(len(y), -1, *(side // self.patch for side in x.shape[2:]))
        first, second = unpatched(y, self.patch).chunk(2, dim=1)
        return first, second


def _first_leaf(module: nn.Module) -> nn.Module:
    return next(inner for inner in module.modules() if not any(True for _ in inner.children()))


def _ratio(grid: Sequence[int], whole: Sequence[int]) -> int | None:
    """Return the integer ratio of `whole` to `grid` that all axes share.

    It is None or 0 if there is none, and 1 without axes.
    """
    ratios = {side // part if part and not side % part else 0 for part, side in zip(grid, whole, strict=True)} or {1}
    return ratios.pop() if len(ratios) == 1 else None


def unpatched(y: Tensor, patch: int) -> Tensor:
    """Rearrange (B, C patch^d, *grid) to (B, C, *(patch grid)), with d axes."""
    if patch == 1:
        return y
    axes = y.ndim - 2
    split = y.reshape(len(y), -1, *[patch] * axes, *y.shape[2:])
    order = [place for axis in range(axes) for place in (2 + axes + axis, 2 + axis)]
    return split.permute(0, 1, *order).reshape(len(y), -1, *(patch * side for side in y.shape[2:]))
