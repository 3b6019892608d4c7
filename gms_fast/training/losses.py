"""Per-element regression targets of the two training stages (Guo et al. 2023, section 3; docs/notation.md)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def noise_loss(model: nn.Module, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Stage 1: mean of (e1 - eps)^2. x_t, eps (B, C, H, W), t (B,) network times -> scalar."""
    h, _ = model.features(x_t, t)
    return (model.out(h)[:, : eps.shape[1]].float() - eps).square().mean()


def moment_loss(target: str) -> Loss:
    """Stage 2: mean of (e2 - y^2)^2 + (e3 - y^3)^2 with y = eps ("raw") or eps - e1 ("central"); only heads learn."""

    def loss(model: nn.Module, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        with torch.no_grad():
            h, emb = model.features(x_t, t)
            y = eps if target == "raw" else eps - model.out(h)[:, : eps.shape[1]].float()
        e2, e3 = model.heads(h, emb)
        return (e2.float() - y**2).square().mean() + (e3.float() - y**3).square().mean()

    return loss
