"""Rates of learning and of averaging, step by step."""

import math


def learning_rate(peak: float, step: int, steps: int, warmup: int, decay: str = "cosine") -> float:
    """Of step 0 .. steps-1: it rises to `peak` over `warmup` steps, and falls by `decay`: "cosine" or "linear" to 0 at
    the last step, or "constant".
    """
    progress = step / steps
    falling = {"cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress, "constant": 1.0}
    return peak * min(1.0, (step + 1) / max(warmup, 1)) * falling[decay]


def averaging(decay: float, step: int) -> float:
    """Decay of a running average at step 0, 1, ..: smaller in the first ones."""
    return min(decay, (1 + step) / (10 + step))
