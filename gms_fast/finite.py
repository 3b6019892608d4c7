"""NaN and infinity are errors that name their place, and looking for them does not make the host wait in every step."""

import math

import torch
from torch import Tensor


def recorded(tensor: Tensor) -> bool:
    """Whether the caller is compiled, or on the tensor's device captured in a CUDA graph: no value exists yet."""
    return torch.compiler.is_compiling() or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


class FiniteCheck:
    """Raises ValueError for tensors with NaN or infinity: at once on a CPU, in `report` for those on other devices.

    While the caller is compiled or captured in a CUDA graph no value exists yet, and nothing is checked.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[str, tuple[Tensor, Tensor]]] = []

    def see(self, tensor: Tensor, message: str) -> None:
        """Remember the extremes of `tensor`, which are finite where all of it is; `message` is its error."""
        if recorded(tensor):
            return
        if tensor.numel():
            self._seen.append((message, tensor.aminmax()))
        if tensor.device.type == "cpu":
            self.report()

    def report(self) -> None:
        """Raise the error of the first tensor seen since the last report that was not finite."""
        seen, self._seen = self._seen, []
        if not seen:
            return
        extremes = torch.stack([value for _, pair in seen for value in pair]).view(-1, 2).tolist()  # one transfer
        for (message, _), pair in zip(seen, extremes, strict=True):
            if not all(map(math.isfinite, pair)):
                raise ValueError(message)
