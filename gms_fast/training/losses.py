"""Per-element regression targets of the two training stages (Guo et al. 2023, section 3; docs/notation.md)."""

from collections.abc import Callable

import torch
from torch import Tensor

from gms_fast.models.unet import MomentUNet

Loss = Callable[[MomentUNet, Tensor, Tensor, Tensor], Tensor]


def noise_loss(model: MomentUNet, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Stage 1: mean of (e1 - eps)^2. x_t, eps (B, C, H, W), t (B,) network times -> scalar."""
    return (model.first_moment(x_t, t).float() - eps).square().mean()


def moment_loss(target: str) -> Loss:
    """Stage 2: mean of (e2 - y^2)^2 + (e3 - y^3)^2, without the second where e3 has no head; only heads learn.

    y = eps ("raw") or eps - e1 ("central"). Normalised heads learn y = (eps - e1)/alpha_t in their own units, where e1
    belongs to E[x_0|x_t] clipped to [-1, 1], as solvers clip it: y = (m - x_0)/sigma_t. Unclipped, the error of e1 is
    multiplied by sigma/alpha, up to 157, and its sixth power drowns everything else.
    """

    def loss(model: MomentUNet, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        with torch.no_grad():
            h, emb = model.features(x_t, t)
            e1: Tensor = model.out(h)[:, : eps.shape[1]].float()
            y = eps if target == "raw" else _deviation(x_t, eps, e1, model.alpha(t)) if model.normalised else eps - e1
        second, third = model.heads(h, emb)
        loss = (second.float() - y**2).square().mean()
        return loss if third is None else loss + (third.float() - y**3).square().mean()

    return loss


def _deviation(x_t: Tensor, eps: Tensor, e1: Tensor, alpha: Tensor) -> Tensor:
    sigma = (1 - alpha**2).sqrt()
    m, x_0 = ((x_t - sigma * e) / alpha for e in (e1, eps))
    return (m.clamp(-1, 1) - x_0) / sigma
