"""Guided models: wrappers that a sampler takes for a model (Ho & Salimans 2022; Dhariwal & Nichol 2021)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gms_fast import prediction as predictions
from gms_fast import schedules
from gms_fast.schedules import Schedule
from gms_fast.steps import StepCoefficients
from gms_fast.types import NoiseMoments


class _Guided(torch.nn.Module):
    """A model with the parameters, sample shape, schedule and prediction of another, `unguided`."""

    def __init__(self, model: Callable, schedule: Schedule | str | None, prediction: str | None) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"model must be callable: got {type(model).__name__}")
        self.unguided = model
        self.sample_shape = getattr(model, "sample_shape", None)
        schedule = schedule if schedule is not None else getattr(model, "schedule", None)
        self.schedule = schedules.build(schedule) if isinstance(schedule, str) else schedule
        self.prediction = prediction or getattr(model, "prediction", "noise")


class ClassifierFree(_Guided):
    """y_u + scale (y_c - y_u) of a conditional network's outputs, in one call on a batch of twice the size.

    model          callable (x, t, condition) -> Tensor or NoiseMoments, of which e1 is led and the others dropped
    condition      tensor (B, *) or (1, *): what the samples shall be
    unconditional  a tensor like `condition` that stands for no condition; None, or scale 1: the conditional output
    scale          w; 1 is no guidance
    schedule, prediction  of the model, unless it has attributes of these names
    """

    def __init__(
        self,
        model: Callable[[Tensor, Tensor, Tensor], Tensor],
        condition: Tensor,
        unconditional: Tensor | None = None,
        *,
        scale: float = 1.0,
        schedule: Schedule | str | None = None,
        prediction: str | None = None,
    ) -> None:
        super().__init__(model, schedule, prediction)
        self.condition, self.unconditional, self.scale = condition, unconditional, float(scale)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        condition = _for_batch("condition", self.condition, x)
        if self.unconditional is None or self.scale == 1:
            return _one(self.unguided(x, t, condition))
        both = torch.cat([_for_batch("unconditional", self.unconditional, x), condition])
        without, given = _one(self.unguided(torch.cat([x, x]), torch.cat([t, t]), both)).chunk(2)
        return without + self.scale * (given - without)


class Classifier(_Guided):
    """eps - scale sigma grad_x log p(c|x_t): the noise of an unconditional network, led by a classifier.

    model     callable (x, t) -> Tensor or NoiseMoments, of which e1 is led and the others dropped
    log_prob  callable (x, t) -> (B,) log p(c|x_t), differentiable in x; t are the network's times
    scale     w
    schedule, prediction  of the model, unless it has attributes of these names

    It looks at the time on the host: a GPU is waited for in every step.
    """

    def __init__(
        self,
        model: Callable[[Tensor, Tensor], Tensor | NoiseMoments],
        log_prob: Callable[[Tensor, Tensor], Tensor],
        *,
        scale: float = 1.0,
        schedule: Schedule | str | None = None,
        prediction: str | None = None,
    ) -> None:
        super().__init__(model, schedule, prediction)
        if self.schedule is None:
            raise ValueError("schedule must be given: this model has no attribute `schedule`")
        if not callable(log_prob):
            raise TypeError(f"log_prob must be callable as log_prob(x, t): got {type(log_prob).__name__}")
        self.log_prob, self.scale = log_prob, float(scale)
        self.form, self.prediction = self.prediction, "noise"

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if not len(x):
            return x
        step = StepCoefficients.at(self.schedule, float(self.schedule.from_network_time(t[0])))
        e = predictions.estimate(self.unguided(x, t), x, step, self.form).moments.e1
        return e - self.scale * step.sigma_t * self._gradient(x, t)

    def _gradient(self, x: Tensor, t: Tensor) -> Tensor:
        learned = x.requires_grad and torch.is_grad_enabled()  # then this gradient has one itself
        with torch.enable_grad():
            leaf = x if learned else x.detach().requires_grad_()
            log_prob = self.log_prob(leaf, t)
            if log_prob.shape != x.shape[:1]:
                raise ValueError(f"log_prob must return {tuple(x.shape[:1])}: got {tuple(log_prob.shape)}")
            return torch.autograd.grad(log_prob.sum(), leaf, create_graph=learned)[0]


def _one(output: Tensor | NoiseMoments) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _for_batch(name: str, condition: Any, x: Tensor) -> Tensor:
    if not isinstance(condition, Tensor) or condition.ndim == 0 or len(condition) not in (1, len(x)):
        got = tuple(condition.shape) if isinstance(condition, Tensor) else type(condition).__name__
        raise ValueError(f"{name} must be a tensor of 1 or {len(x)} rows: got {got}")
    return condition.to(x.device).expand(len(x), *condition.shape[1:])
