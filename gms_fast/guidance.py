"""Guided models, which a sampler accepts in place of a model.

Classifier-free guidance is from Ho & Salimans 2022, arXiv 2207.12598; classifier guidance is from
Dhariwal & Nichol 2021, arXiv 2105.05233.

Guidance moves E[eps|x_t], but does not determine the moments about this mean. This module therefore shifts
the network's conditional distribution of the noise by d and keeps its shape:

    eps' = eps + d:   e1' = e1 + d,   E[(eps' - e1')^k] = E[(eps - e1)^k]

Central moments do not change. Raw moments follow from e1, e2, e3 and d (`shifted`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gms_fast import schedules
from gms_fast.assumptions import attribute, missing
from gms_fast.estimate import estimate
from gms_fast.network import own_way, takes_keywords
from gms_fast.prediction import Guided, Meaning, shifted
from gms_fast.schedules import Schedule
from gms_fast.steps import StepCoefficients
from gms_fast.types import NoiseMoments

__all__ = [
    "Classifier",
    "ClassifierFree",
]

Condition = Tensor | Mapping[str, Any] | None
_SCALARS = (bool, int, float, str, type(None))


class _Guided(torch.nn.Module):
    """Wrapper with the parameters and the attributes of another model, `unguided`."""

    def __init__(self, model: Callable[..., Any], schedule: Schedule | str | None, prediction: str | None) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"model must be callable: got {type(model).__name__}")
        self.unguided = model
        own = attribute(model, "schedule")
        own = schedules.build(own) if isinstance(own, str) else own
        self.schedule = own if schedule is None else schedules.build(schedule).asked_like(own)
        self.sample_shape = attribute(model, "sample_shape")
        self.prediction = prediction or attribute(model, "prediction", "noise")
        self.moments = attribute(model, "moments", "raw")
        self.self_condition = attribute(model, "self_condition")
        clip = attribute(model, "clip", ())
        if clip != ():  # None means no data range; a missing attribute means that the range is unknown
            self.clip = clip

    @property
    def untrained(self) -> bool:
        """True if the model has moment heads that were never trained."""
        return bool(attribute(self.unguided, "untrained", False))

    def _led(self, output: Tensor | NoiseMoments, to: Tensor) -> Tensor | NoiseMoments:
        """Return the output moved to another first moment; one tensor is replaced."""
        return to if isinstance(output, Tensor) else shifted(output, to, central=self.moments == "central")


class ClassifierFree(_Guided):
    """Classifier-free guidance: y_u + scale (y_c - y_u) from a conditional network.

    y_c and y_u are the network's outputs with and without the condition. If the network returns noise
    moments, y is the first moment e1, and the central moments are those of the conditional output.

    Each evaluation calls the network once, on a batch of twice the size. If the two conditions cannot be
    stacked, for example because prompts differ in length, it calls the network twice. With scale 1, it calls
    the network once, with the condition only.

    Args:
        model: Callable that returns one tensor or [`NoiseMoments`][gms_fast.NoiseMoments]. It is called as
            `(x, t, condition)` if the condition is a tensor, or `(x, t, **condition)` if it is a dict.
        condition: Condition of the samples: a tensor (B, *) or (1, *), or a dict of keyword arguments. The values of
            the dict are such tensors, numbers, strings, None, or dicts of these. The same condition is passed to every
            call, so it must have a single row if you sample with `batch_size`, where the sizes of batches can differ.
            None (default): each call passes the condition as keyword arguments, `guided(x, t, **condition)`, as
            `sample(condition=...)` does.
        unconditional: Input that means "no condition", a tensor or a dict with the same keywords as the
            condition. Required unless `scale` is 1.
        scale: Guidance scale w. 1 (default) means no guidance.
        schedule: Noise schedule or its name, or None (default) for the model's `schedule`.
        prediction: Meaning of a single output tensor, such as "noise" or "x0". None (default) stands for the
            model's `prediction` if it has one, else "noise".

    Raises:
        ValueError: If `unconditional` is missing, or if its keywords differ from those of `condition`.
        TypeError: If `model` is not callable.

    Examples:
        The noise estimate of this toy network depends on the class y. Class 2 means "no class":

        >>> def network(x, t, y):
        ...     return x - 0.1 * y[:, None]
        >>> guided = gms_fast.guidance.ClassifierFree(network, unconditional={"y": torch.tensor([2])}, scale=3)
        >>> x, t = torch.zeros(2, 1), torch.zeros(2)
        >>> guided(x, t, y=torch.tensor([0, 1]))
        tensor([[0.4000],
                [0.1000]])
        >>> gms_fast.sample(guided, 5, solver="ddim", schedule="linear", shape=(1,), n=2, clip=None,
        ...                 condition={"y": torch.tensor([0, 1])}).shape
        torch.Size([2, 1])

    References:
        Ho & Salimans 2022, arXiv 2207.12598.
    """

    def __init__(
        self,
        model: Callable[..., Tensor | NoiseMoments],
        condition: Condition = None,
        unconditional: Condition = None,
        *,
        scale: float = 1.0,
        schedule: Schedule | str | None = None,
        prediction: str | None = None,
    ) -> None:
        super().__init__(model, schedule, prediction)
        self.condition, self.unconditional, self.scale = condition, unconditional, float(scale)
        if self.scale != 1 and unconditional is None:
            raise ValueError(f"unconditional must be given where scale is not 1: got None and scale = {self.scale:g}")
        if condition is not None and unconditional is not None:
            _check_alike(condition, unconditional)
        first = getattr(model, "first_moment", None)  # a tensor condition cannot be passed by keyword
        self._asks_first = callable(first) and not isinstance(condition, Tensor) and takes_keywords(first)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor | NoiseMoments:
        output = self.outputs(x, t, **condition)
        return output.merged(central=self.moments == "central") if isinstance(output, Guided) else output

    def outputs(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor | NoiseMoments | Guided:
        """Return both outputs of the network for a kernel to combine.

        With scale 1, return the conditional output only.

        Args:
            x: States (B, *).
            t: Network times (B,).
            **condition: Condition as keyword arguments, unless it was given to the constructor.
        """
        return self._outputs(self.unguided, x, t, condition)

    def first_outputs(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor | NoiseMoments | Guided:
        """Return both outputs for a step that needs only e1.

        A network with a method `first_moment` then does not compute the higher moments.

        Args:
            x: States (B, *).
            t: Network times (B,).
            **condition: Condition as keyword arguments, unless it was given to the constructor.
        """
        model = own_way(self.unguided, "first_moment") if self._asks_first else self.unguided
        return self._outputs(model, x, t, condition)

    def _outputs(
        self, model: Callable[..., Any], x: Tensor, t: Tensor, condition: dict[str, Any]
    ) -> Tensor | NoiseMoments | Guided:
        given = _expanded("condition", self._condition(condition), x)
        if self.scale == 1:
            return _called(model, x, t, given)
        _check_alike(given, self.unconditional)
        none = _expanded("unconditional", self.unconditional, x)
        if _fit_together(none, given):
            both = _called(model, torch.cat([x, x]), torch.cat([t, t]), _joined(none, given))
            without, output = _halves(both)
        else:
            without, output = (_called(model, x, t, part) for part in (none, given))
        return Guided(output, _first(without), self.scale)

    def _condition(self, called: dict[str, Any]) -> Tensor | Mapping[str, Any]:
        """Return the condition, held or given with the call."""
        if self.condition is None:
            if not called:
                raise ValueError("condition must be given, to ClassifierFree or with the call: got None")
            return called
        if called:
            raise ValueError(
                f"condition must be given once: ClassifierFree holds one, and the call gave {', '.join(called)}"
            )
        return self.condition


class Classifier(_Guided):
    """Classifier guidance: eps - scale sigma_t grad_x log p(c|x_t).

    The noise estimate of an unconditional network is shifted along the gradient of a classifier. The central
    moments of the network's output do not change.

    Args:
        model: Callable `(x, t)` that returns one tensor or [`NoiseMoments`][gms_fast.NoiseMoments].
            Keyword arguments of a call are passed to it.
        log_prob: Callable `(x, t)` that returns log p(c|x_t) with shape (B,), differentiable in x. t (B,)
            holds network times.
        scale: Guidance scale w (default 1).
        schedule: Noise schedule or its name, or None (default) for the model's `schedule`. Required if the
            model has none.
        prediction: Meaning of a single output tensor, such as "noise" or "x0". None (default) stands for the
            model's `prediction` if it has one, else "noise".

    Raises:
        ValueError: If there is no schedule, or if `log_prob` returns a tensor of the wrong shape.
        TypeError: If `model` or `log_prob` is not callable.

    Note:
        Each step copies the time from the device to the CPU. On a GPU, the CPU therefore waits for every step.

    Examples:
        >>> def log_prob(x, t):  # prefers bright images
        ...     return x.flatten(1).sum(1)
        >>> model = gms_fast.load("digits")
        >>> bright = gms_fast.guidance.Classifier(model, log_prob, scale=0.5)
        >>> x, guided = gms_fast.sample(model, 5, n=4), gms_fast.sample(bright, 5, n=4)
        >>> bool(guided.mean() > x.mean())
        True

    References:
        Dhariwal & Nichol 2021, arXiv 2105.05233.
    """

    def __init__(
        self,
        model: Callable[..., Tensor | NoiseMoments],
        log_prob: Callable[[Tensor, Tensor], Tensor],
        *,
        scale: float = 1.0,
        schedule: Schedule | str | None = None,
        prediction: str | None = None,
    ) -> None:
        super().__init__(model, schedule, prediction)
        if self.schedule is None:
            raise ValueError(missing(model, "schedule"))
        if not callable(log_prob):
            raise TypeError(f"log_prob must be callable as log_prob(x, t): got {type(log_prob).__name__}")
        self.log_prob, self.scale = log_prob, float(scale)
        self.form, self.prediction = self.prediction, "noise"

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor | NoiseMoments:
        output = self.unguided(x, t, **condition)
        if not len(x):
            return output
        step = StepCoefficients.at(self.schedule, float(self.schedule.from_network_time(t[0])))
        e = estimate(output, x, Meaning(self.form, step)).moments.e1
        return self._led(output, e - self.scale * step.sigma_t * self._gradient(x, t))

    def _gradient(self, x: Tensor, t: Tensor) -> Tensor:
        learned = x.requires_grad and torch.is_grad_enabled()  # then the caller differentiates this gradient
        with torch.enable_grad():
            leaf = x if learned else x.detach().requires_grad_()
            log_prob = self.log_prob(leaf, t)
            if log_prob.shape != x.shape[:1]:
                raise ValueError(f"log_prob must return {tuple(x.shape[:1])}: got {tuple(log_prob.shape)}")
            return torch.autograd.grad(log_prob.sum(), leaf, create_graph=learned)[0]


def _called(
    model: Callable[..., Any], x: Tensor, t: Tensor, condition: Tensor | dict[str, Any]
) -> Tensor | NoiseMoments:
    """Call the model; return one tensor or all three moments."""
    output = model(x, t, condition) if isinstance(condition, Tensor) else model(x, t, **condition)
    if isinstance(output, Tensor):
        return output
    if not isinstance(output, tuple) or not 1 <= len(output) <= 3 or not isinstance(output[0], Tensor):
        raise TypeError(f"model must return a tensor or NoiseMoments(e1, e2, e3): got {type(output).__name__}")
    return NoiseMoments(*output)


def _first(output: Tensor | NoiseMoments) -> Tensor:
    return output if isinstance(output, Tensor) else output.e1


def _halves(output: Tensor | NoiseMoments) -> tuple[Tensor | NoiseMoments, Tensor | NoiseMoments]:
    """Split the output of a batch into its first and second half."""
    if isinstance(output, Tensor):
        y_1, y_2 = output.chunk(2)
        return y_1, y_2
    parts = ((e, e) if e is None else e.chunk(2) for e in output)
    first, second = (NoiseMoments(*half) for half in zip(*parts, strict=True))
    return first, second


# --- conditions: a tensor, or keywords ---


def _check_alike(condition: Condition, unconditional: Condition) -> None:
    """Raise ValueError unless both are tensors or both have the same keywords."""
    keywords, others = isinstance(condition, Mapping), isinstance(unconditional, Mapping)
    if keywords != others:
        named = ("a tensor", "keywords")
        raise ValueError(f"unconditional must be {named[keywords]} like condition: got {named[others]}")
    if isinstance(condition, Mapping) and isinstance(unconditional, Mapping):
        _check_keywords(condition, unconditional, "")


def _check_keywords(condition: Mapping[str, Any], unconditional: Mapping[str, Any], inside: str) -> None:
    """Raise ValueError unless both have the same keywords, also in the nested dicts `inside`."""
    given, none = f"condition{inside}", f"unconditional{inside}"
    if missing := ", ".join(sorted(condition.keys() - unconditional.keys())):
        raise ValueError(f"{none} must have the keywords of {given}: missing {missing}")
    if missing := ", ".join(sorted(unconditional.keys() - condition.keys())):
        raise ValueError(f"{given} must have the keywords of {none}: missing {missing}")
    for key, value in condition.items():
        if isinstance(value, Mapping) and isinstance(unconditional[key], Mapping):
            _check_keywords(value, unconditional[key], f"{inside}[{key!r}]")


def _expanded(name: str, condition: object, x: Tensor) -> Tensor | dict[str, Any]:
    """Give the condition one row for each sample of x, on its device."""
    if not isinstance(condition, Mapping):
        return _for_batch(name, condition, x)
    return {
        key: value if isinstance(value, _SCALARS) else _expanded(f"{name}[{key!r}]", value, x)
        for key, value in condition.items()
    }


def _for_batch(name: str, condition: object, x: Tensor) -> Tensor:
    if not isinstance(condition, Tensor) or condition.ndim == 0 or len(condition) not in (1, len(x)):
        got = tuple(condition.shape) if isinstance(condition, Tensor) else type(condition).__name__
        raise ValueError(f"{name} must be a tensor of 1 or {len(x)} rows: got {got}")
    return condition.to(x.device).expand(len(x), *condition.shape[1:])


def _fit_together(a: object, b: object) -> bool:
    """Tell whether one call can take both conditions.

    Tensors must have one shape; everything else must be equal.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return all(_fit_together(a[key], b[key]) for key in a)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape
    return type(a) is type(b) and a == b


def _joined(a: Any, b: Any) -> Any:
    """Stack both conditions along the first dimension."""
    if isinstance(a, dict):
        return {key: _joined(a[key], b[key]) for key in a}
    return torch.cat([a, b]) if isinstance(a, Tensor) else b
