"""Learning rate and averaging decay by step."""

import math


def learning_rate(peak: float, step: int, steps: int, warmup: int, decay: str = "cosine") -> float:
    """Return the learning rate of step 0 .. steps-1.

    It rises to `peak` over `warmup` steps. It then falls by `decay`: "cosine" or "linear" to 0 after the last step, or
    "constant".
    """
    progress = step / steps
    falling = {"cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress, "constant": 1.0}
    return peak * min(1.0, (step + 1) / max(warmup, 1)) * falling[decay]


def averaging(decay: float, step: int) -> float:
    """Return the decay of a running average at step 0, 1, ..; it is smaller in the first steps."""
    return min(decay, (1 + step) / (10 + step))
