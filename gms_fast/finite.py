"""NaN and infinity are errors that name their place, and looking for them does not make the host wait in every step."""

import math

import torch
from torch import Tensor


def recorded(tensor: Tensor) -> bool:
    """Tell whether the caller is compiled, or on the tensor's device captured in a CUDA graph: no value exists yet."""
    return torch.compiler.is_compiling() or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


class FiniteCheck:
    """Raises ValueError for tensors with NaN or infinity: at once on a CPU, in `report` for those on other devices.

    While the caller is compiled or captured in a CUDA graph no value exists yet, and nothing is checked.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[str, tuple[Tensor, Tensor]]] = []
        self._noted: list[Tensor] = []
        self.noted: list[float] = []

    def see(self, tensor: Tensor, message: str) -> None:
        """Remember the extremes of `tensor`, which are finite where all of it is; `message` is its error."""
        if recorded(tensor):
            return
        if tensor.numel():
            self._seen.append((message, tensor.aminmax()))
        if tensor.device.type == "cpu":
            self.report()

    def note(self, number: Tensor) -> None:
        """Have `report` bring a number () to the host, at the end of `noted`."""
        self._noted.append(number)

    def report(self) -> None:
        """Raise the error of the first tensor seen since the last report that was not finite."""
        (seen, self._seen), (noted, self._noted) = (self._seen, []), (self._noted, [])
        if not seen and not noted:
            return
        numbers = torch.stack([*(value for _, pair in seen for value in pair), *noted]).tolist()  # one transfer
        self.noted += numbers[2 * len(seen) :]
        for (message, _), low, high in zip(seen, numbers[::2], numbers[1::2], strict=False):
            if not math.isfinite(low) or not math.isfinite(high):
                raise ValueError(message)
