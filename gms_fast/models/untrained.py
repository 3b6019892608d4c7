"""Warning about moment heads that nobody has trained.

The last layer of every head begins at zero, and the first step of training moves it. So the weights themselves say
whether heads are trained, however they were loaded.
"""

import warnings

import torch
from torch import Tensor, nn

from gms_fast.callers import stacklevel
from gms_fast.finite import recorded


class Warned:
    """Base of models with moment heads: looks at the heads once, when they are first read."""

    _looked = False

    def _look_at(self, last: nn.Module, x: Tensor) -> None:
        """Warn if the last layer of the heads holds zeros alone.

        Nothing is read while a graph is recorded, where no values exist, or while somebody looks for waits for the GPU,
        as `graphed` does: this is one, the first time.
        """
        if torch.compiler.is_compiling() or self._looked or recorded(x):
            return
        if x.is_cuda and torch.cuda.get_sync_debug_mode():
            return
        self._looked = True
        if not x.is_meta and not any(bool(weight.any()) for weight in last.parameters()):
            warnings.warn(
                "the moment heads are not trained: train them with gms_fast.training.train_moment_heads, or use a "
                'solver that needs the noise alone, such as solver="er-sde"',
                stacklevel=stacklevel(),
            )
