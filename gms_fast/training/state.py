"""State of a training run: weights, running average, optimiser and loss curve."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gms_fast.storage import atomic, checkpoint
from gms_fast.storage.configuration import check_same
from gms_fast.storage.schema import Integer, Listed, Real
from gms_fast.training.rates import averaging
from gms_fast.training.settings import Settings

CHECKPOINT, CURVE = "checkpoint.pt", "curve.csv"


class State:
    """Weights in training, their running average, optimiser, loss curve and checkpoint."""

    def __init__(
        self, parameters: dict[str, nn.Parameter], run: Settings, path: Path, configuration: dict[str, Any]
    ) -> None:
        self.run, self.parameters, self.path, self.configuration = run, parameters, path, configuration
        self.average = {n: p.detach().clone() for n, p in parameters.items()}
        fused = True if all(p.is_cuda for p in parameters.values()) else None  # one kernel for all weights
        self.optimiser = torch.optim.Adam(parameters.values(), lr=run.lr, fused=fused)
        self.step, self.smooth, self.seconds = 0, float("nan"), 0.0
        self.curve: list[list[float]] = []
        self._since = self._saved = time.perf_counter()

    def update(self, learn: Callable[[], Tensor]) -> Tensor:
        """Take one optimiser step.

        `learn` computes the gradients and returns the loss.
        """
        self.optimiser.zero_grad(set_to_none=True)
        loss = learn()
        nn.utils.clip_grad_norm_(self.parameters.values(), self.run.clip_norm)
        self.optimiser.param_groups[0]["lr"] = self.run.lr_at(self.step)
        self.optimiser.step()
        decay = averaging(self.run.ema, self.step)
        with torch.no_grad():
            torch._foreach_lerp_([*self.average.values()], [*self.parameters.values()], 1 - decay)
        self.step += 1
        return loss

    @property
    def unsaved(self) -> float:
        """Seconds since the last checkpoint, or since the start."""
        return time.perf_counter() - self._saved

    def record(self, loss: float, step: int) -> None:
        """Add the loss of a step to the curve.

        Raises FloatingPointError for a loss that is NaN or infinite.
        """
        if not math.isfinite(loss):
            raise FloatingPointError(f"training diverged: loss is {loss} at step {step}; start again with a lower lr")
        self.smooth = loss if math.isnan(self.smooth) else 0.99 * self.smooth + 0.01 * loss
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        if step % 50 == 0 or step == self.run.steps:
            self.curve.append([step, round(self.smooth, 6), round(self.seconds, 1)])

    def save(self) -> None:
        """Write the checkpoint and the curve."""
        state = {
            "configuration": self.configuration,
            "step": self.step,
            "smooth": self.smooth,
            "seconds": self.seconds,
            "curve": self.curve,
            "weights": {n: p.detach() for n, p in self.parameters.items()},
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }
        checkpoint.write(self.path, state)
        self.write_curve()
        self._saved = time.perf_counter()

    def write_curve(self) -> None:
        """Write the curve alone.

        It is missing or outdated where the process was killed just after the checkpoint.
        """
        atomic.write_rows(self.path.with_name(CURVE), [["step", "loss", "seconds"], *self.curve])

    def stored(self, resume: bool) -> dict[str, Any] | None:
        """Read and check the checkpoint; None without a file. `take` resumes from it.

        Raises FileExistsError if there is a checkpoint and `resume` is False. Raises ValueError for another
        configuration or a damaged checkpoint.
        """
        if not self.path.exists():
            return None
        folder = self.path.parent
        if not resume:
            raise FileExistsError(f"out: {folder} already holds a training run; resume it or choose another folder")
        state = checkpoint.read(self.path)
        message = f"{folder} was made with another configuration; choose another folder"
        check_same(state["configuration"], self.configuration, message)
        tensors = checkpoint.Like.of(self.parameters)
        wants = {
            "step": Integer(0, self.run.steps),
            "smooth": Real(nan=True),
            "seconds": Real(0),
            "curve": Listed(Listed(Real(), 3, 3), self.run.steps + 1),
            "weights": tensors,
            "average": tensors,
        }
        checkpoint.check(self.path, state, wants, self.optimiser)
        return state

    def take(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""
        self.step, self.smooth, self.seconds = state["step"], state["smooth"], state["seconds"]
        self.curve = state["curve"]
        self._copy(state["weights"], self.parameters)
        self._copy(state["average"], self.average)
        self.optimiser.load_state_dict(state["optimiser"])
        for p, kept in self.optimiser.state.items():  # the fused kernel needs the memory layout of the weights
            kept |= {name: torch.empty_like(p).copy_(kept[name]) for name in ("exp_avg", "exp_avg_sq")}

    def load_average(self) -> None:
        """Copy the averaged weights into the model."""
        self._copy(self.average, self.parameters)

    @staticmethod
    def _copy(source: dict[str, Tensor], target: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, value in source.items():
                target[name].copy_(value)
