"""Parameters that a search learns, and the sampler table that they make.

Where all parameters are zero, the table is the first one.
"""

import operator
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from gms_fast.tables.ggdm import GGDMTable, tied, update_weights

VARIANTS = ("ggdm", "pred", "time", "constrained")
_QUIET = 0.02  # least learned sigma[t] at the start, as a share of sigma_t: at 0 its gradient would be 0


class Parameters(nn.Module):
    """Learned parameters of a table: mu[t][u], t < K, and others by variant.

    "ggdm": the data estimate follows from the marginals (`tied`).
    "pred": the data estimate p_t m + q_t x_t has weights of its own, m = E[x_0|x_t].
    "time": like "pred", and the times tau_1 .. tau_{K-1} are learned.
    "constrained": q(x_t|x_0) stays the schedule's. The directions r of mu[t][u], u > t, are learned; their length and
    mu[t][0] follow.

    With `stochastic`, sigma[t], t < K, is learned. Otherwise it stays that of the first table.
    """

    def __init__(self, table: GGDMTable, variant: str, *, stochastic: bool) -> None:
        super().__init__()
        self.variant, self.stochastic, self.first = variant, stochastic, table
        K = table.steps
        self.mu = _new(K + 1, K + 1)
        if stochastic:
            self.sigma = _new(K + 1)
        if variant in ("pred", "time"):
            self.p, self.q = _new(K + 1), _new(K + 1)
        if variant == "time":
            self.tau = _new(K)
        mask = torch.ones(K + 1, K + 1, dtype=torch.float64, device="cpu").triu(1)
        mask[1:, 0] = float(variant != "constrained")
        mask[[0, K]] = 0
        self.mask = mask
        self._check_start()

    @torch.no_grad()
    def _check_start(self) -> None:
        """Check that the variant has something to learn and can represent the first table.

        Raises ValueError otherwise.
        """
        if self.variant in ("ggdm", "constrained") and self.first.steps == 1:
            raise ValueError(f'variant "{self.variant}" has nothing to learn at steps = 1: use variant="pred"')
        made = self.updates(self._made(self.first.sigma))
        for (got, _), (weights, _) in zip(made, self.first.updates(), strict=True):
            if not torch.allclose(got, weights, rtol=1e-9, atol=1e-9):
                raise ValueError(
                    f'initial must be a table that variant "{self.variant}" can represent, with the data estimate or '
                    'the marginals that it keeps: use variant="pred" or "time"'
                )

    def forward(self) -> dict[str, Tensor]:
        """Return tau, mu, sigma and, if they are learned, c and d of the table; differentiable."""
        return self._made(self._sigma())

    def _made(self, sigma: Tensor) -> dict[str, Tensor]:
        tau, mu = self._tau(), self.first.mu + self.mask * self.mu
        if self.variant == "constrained":
            alpha, s = self._levels(tau)
            eta = torch.cat([sigma[:1], (sigma[1:] / s[1:]).clamp(max=0.999)])  # at 1 older states would have no weight
            mu, sigma = matched(mu, eta, alpha, s)
        made = {"tau": tau, "mu": mu, "sigma": sigma}
        return made | (self._prediction(tau) if self.variant in ("pred", "time") else {})

    def updates(self, made: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return the steps of the result of `forward` (see `update_weights`)."""
        c, d = (made["c"], made["d"]) if "c" in made else tied(made["mu"], made["sigma"])
        return update_weights(self._levels(made["tau"]), made["mu"], made["sigma"], c, d)

    @torch.no_grad()
    def table(self, network: str | None) -> GGDMTable:
        """Return the learned table for the network with this fingerprint."""
        return GGDMTable(self.first.schedule, **self(), network=network)

    def _levels(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        return self.first.schedule.alpha(tau), self.first.schedule.sigma(tau)

    def _tau(self) -> Tensor:
        """Return the times, whose first and last stay fixed.

        The gaps are shares softmax(log of the first shares + w).
        """
        first = self.first.tau
        if self.variant != "time":
            return first
        shares = (first.diff().log() + self.tau).softmax(0)
        inner = first[0] + (first[-1] - first[0]) * shares.cumsum(0)[:-1]
        return torch.cat([first[:1], inner, first[-1:]])

    def _sigma(self) -> Tensor:
        first = self.first.sigma
        if not self.stochastic:
            return first
        start = torch.maximum(first, _QUIET * self.first.schedule.sigma(self.first.tau))[1:-1]
        inner = softplus(torch.log(torch.expm1(start)) + self.sigma[1:-1])
        return torch.cat([first[:1], inner, first[-1:]])

    def _prediction(self, tau: Tensor) -> dict[str, Tensor]:
        """Return c and d of p m + q x_t = (p/alpha_t + q) x_t - p sigma_t/alpha_t eps.

        p starts at 1 and q at 0, or at the values of the first table.
        """
        first = self.first
        c, d = (first.c, first.d) if first.c is not None and first.d is not None else tied(first.mu, first.sigma)
        levels = (*self._levels(tau), *self._levels(first.tau), c, d, self.p, self.q)
        alpha, sigma, a, s, c, d, p, q = (values[1:] for values in levels)  # level 0 may have sigma = 0
        p, q = d * a / s * (1 + p), c - d / s + q
        made = {"c": p / alpha + q, "d": p * sigma / alpha}
        return {name: torch.cat([torch.zeros_like(value[:1]), value]) for name, value in made.items()}


def _new(*size: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*size, dtype=torch.float64, device="cpu"))


def matched(r: Tensor, eta: Tensor, alpha: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return mu and sigma that keep the marginals a_t = alpha_t and v_t = s_t^2.

    mu[t][u] is a multiple of r[t][u] for u > t, and sigma[t] = eta_t s_t for t < K.
    r is (K+1, K+1); eta, alpha and s are (K+1,). With N_u the noise of level u, n = sum_u r[t][u] N_u is scaled to
    length s_t sqrt(1 - eta_t^2), and mu[t][0] = alpha_t - sum_u mu[t][u] alpha_u.
    """
    K, unit = len(s) - 1, torch.eye(len(s), dtype=r.dtype, device=r.device)
    noise, rows, sigma = (
        {K: s[K] * unit[K]},
        {K: alpha[K] * unit[0]},
        torch.cat([eta[:1] * 0, eta[1:-1] * s[1:-1], s[-1:]]),
    )
    for t in range(K - 1, 0, -1):
        n = reduce(operator.add, (r[t, u] * noise[u] for u in range(t + 1, K + 1)))
        scale = s[t] * (1 - eta[t].square()).sqrt() / n.norm()
        older = scale * r[t, t + 1 :]
        first = alpha[t] - older @ alpha[t + 1 :]
        rows[t] = torch.cat([first[None], torch.zeros_like(r[t, 1 : t + 1]), older])
        noise[t] = sigma[t] * unit[t] + scale * n
    return torch.stack([torch.zeros_like(r[0]), *(rows[t] for t in range(1, K + 1))]), sigma
