"""Guided models: wrappers that a sampler takes for a model (Ho & Salimans 2022; Dhariwal & Nichol 2021).

Guidance says where E[eps|x_t] shall be, and nothing of the moments about it. A network's noise moments keep theirs: the
guided law of the noise is that of the network, of a conditional one that given the condition, shifted by d,

    eps' = eps + d:   e1' = e1 + d,   E[(eps' - e1')^k] = E[(eps - e1)^k]

so that moments about the mean stay as they are, and raw ones follow from e1, e2, e3 and d (`shifted`).
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
    """A model with the parameters of another, `unguided`, and what that says of itself."""

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
        if clip != ():  # None says that there is no data range, and is not the same as saying nothing
            self.clip = clip

    def _led(self, output: Tensor | NoiseMoments, to: Tensor) -> Tensor | NoiseMoments:
        """The output with another first moment, or the other tensor where it is but one."""
        return to if isinstance(output, Tensor) else shifted(output, to, central=self.moments == "central")


class ClassifierFree(_Guided):
    """y_u + scale (y_c - y_u) of a conditional network's outputs y, given a condition and none.

    model          callable (x, t, condition) -> Tensor or NoiseMoments, or (x, t, **condition) for keywords. Of moments
                   e1 is y, and those about it are of the conditional output
    condition      what the samples shall be: a tensor (B, *) or (1, *), or keywords of such tensors, numbers, strings,
                   None, and dicts of these. None here: keywords come with each call, guided(x, t, **condition), those
                   of the samples in it, as from `sample(condition=..)`. What is held here must fit every call: with
                   `batch_size` it is of one row
    unconditional  the same that stands for no condition, with the same keywords. Needed unless scale is 1
    scale          w; 1 is no guidance
    schedule, prediction  of the model, unless it has attributes of these names

    One call of the network on a batch of twice the size; two where conditions differ in more than the values of
    tensors, as prompts of unequal length do. With scale 1 one call, without `unconditional`.
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
        first = getattr(model, "first_moment", None)  # conditions that are tensors are no keywords
        self._asks_first = callable(first) and not isinstance(condition, Tensor) and takes_keywords(first)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor | NoiseMoments:
        output = self.outputs(x, t, **condition)
        return output.merged(central=self.moments == "central") if isinstance(output, Guided) else output

    def outputs(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor | NoiseMoments | Guided:
        """The two outputs of the network, apart: a sampler's kernel leads them. One where the scale is 1."""
        return self._outputs(self.unguided, x, t, condition)

    def first_outputs(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor | NoiseMoments | Guided:
        """The same where only the first moment is read, which some networks give for less."""
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
        """The condition, held or of the call."""
        if self.condition is None:
            if not called:
                raise ValueError("condition must be given, to ClassifierFree or with the call: got None")
            return called
        if called:
            raise ValueError(
                f"condition must be given once: got it of ClassifierFree and {', '.join(called)} of the call"
            )
        return self.condition


class Classifier(_Guided):
    """eps - scale sigma grad_x log p(c|x_t): the noise of an unconditional network, led by a classifier.

    model     callable (x, t) -> Tensor or NoiseMoments, whose moments about e1 are kept; conditions of a call are its
    log_prob  callable (x, t) -> (B,) log p(c|x_t), differentiable in x; t are the network's times
    scale     w
    schedule, prediction  of the model, unless it has attributes of these names

    It looks at the time on the host: a GPU is waited for in every step.
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
        learned = x.requires_grad and torch.is_grad_enabled()  # then this gradient has one itself
        with torch.enable_grad():
            leaf = x if learned else x.detach().requires_grad_()
            log_prob = self.log_prob(leaf, t)
            if log_prob.shape != x.shape[:1]:
                raise ValueError(f"log_prob must return {tuple(x.shape[:1])}: got {tuple(log_prob.shape)}")
            return torch.autograd.grad(log_prob.sum(), leaf, create_graph=learned)[0]


def _called(
    model: Callable[..., Any], x: Tensor, t: Tensor, condition: Tensor | dict[str, Any]
) -> Tensor | NoiseMoments:
    """The model's output, one tensor or all three moments."""
    output = model(x, t, condition) if isinstance(condition, Tensor) else model(x, t, **condition)
    if isinstance(output, Tensor):
        return output
    if not isinstance(output, tuple) or not 1 <= len(output) <= 3 or not isinstance(output[0], Tensor):
        raise TypeError(f"model must return a tensor or NoiseMoments(e1, e2, e3): got {type(output).__name__}")
    return NoiseMoments(*output)


def _first(output: Tensor | NoiseMoments) -> Tensor:
    return output if isinstance(output, Tensor) else output.e1


def _halves(output: Tensor | NoiseMoments) -> tuple[Tensor | NoiseMoments, Tensor | NoiseMoments]:
    """The outputs of a batch's first and second half."""
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
    """Raise ValueError unless both have the same keywords, in the dicts `inside` of them too."""
    given, none = f"condition{inside}", f"unconditional{inside}"
    if missing := ", ".join(sorted(condition.keys() - unconditional.keys())):
        raise ValueError(f"{none} must have the keywords of {given}: missing {missing}")
    if missing := ", ".join(sorted(unconditional.keys() - condition.keys())):
        raise ValueError(f"{given} must have the keywords of {none}: missing {missing}")
    for key, value in condition.items():
        if isinstance(value, Mapping) and isinstance(unconditional[key], Mapping):
            _check_keywords(value, unconditional[key], f"{inside}[{key!r}]")


def _expanded(name: str, condition: object, x: Tensor) -> Tensor | dict[str, Any]:
    """The condition with one row for each of x, on its device."""
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
    """Tell conditions that one call can have both: tensors of one shape, keywords that are alike but for those."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return all(_fit_together(a[key], b[key]) for key in a)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape
    return type(a) is type(b) and a == b


def _joined(a: Any, b: Any) -> Any:
    """Both conditions, one below the other."""
    if isinstance(a, dict):
        return {key: _joined(a[key], b[key]) for key in a}
    return torch.cat([a, b]) if isinstance(a, Tensor) else b
