"""The numbers that a search learns, and the table they make: all are zero where the table is the one it began with."""

import operator
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from gms_fast.tables.ggdm import GGDMTable, tied, update_weights

VARIANTS = ("ggdm", "pred", "time", "constrained")
_QUIET = 0.02  # of sigma_t: least sigma[t] at first, where it is learned: at 0 its gradient would be 0


class Parameters(nn.Module):
    """mu[t][u], t < K, and by variant what else is free.

    "ggdm"         the data estimate is that of the marginals (`tied`)
    "pred"         x0hat = p_t m + q_t x_t of its own weights, m = E[x_0|x_t]
    "time"         and the times tau_1 .. tau_{K-1}
    "constrained"  q(x_t|x_0) stays the schedule's: directions r of mu[t][u], u > t, whose length and mu[t][0] follow
    stochastic     sigma[t], t < K, is learned; else it stays that of the first table
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
        """Raise ValueError where there is nothing to learn, or the variant has no place for the first table."""
        if self.variant in ("ggdm", "constrained") and self.first.steps == 1:
            raise ValueError(f'variant "{self.variant}" has nothing to learn at steps = 1: take "pred"')
        made = self.updates(self._made(self.first.sigma))
        for (got, _), (weights, _) in zip(made, self.first.updates(), strict=True):
            if not torch.allclose(got, weights, rtol=1e-9, atol=1e-9):
                raise ValueError(
                    f'initial must be a table that variant "{self.variant}" can begin as, with the data estimate or '
                    'the marginals that it keeps: take "pred" or "time"'
                )

    def forward(self) -> dict[str, Tensor]:
        """tau, mu, sigma and, if they are free, c and d of the table, differentiable."""
        return self._made(self._sigma())

    def _made(self, sigma: Tensor) -> dict[str, Tensor]:
        tau, mu = self._tau(), self.first.mu + self.mask * self.mu
        if self.variant == "constrained":
            alpha, s = self._levels(tau)
            eta = torch.cat([sigma[:1], (sigma[1:] / s[1:]).clamp(max=0.999)])  # at 1 no older state would count
            mu, sigma = matched(mu, eta, alpha, s)
        made = {"tau": tau, "mu": mu, "sigma": sigma}
        return made | (self._prediction(tau) if self.variant in ("pred", "time") else {})

    def updates(self, made: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The steps of what `forward` made (`update_weights`)."""
        c, d = (made["c"], made["d"]) if "c" in made else tied(made["mu"], made["sigma"])
        return update_weights(self._levels(made["tau"]), made["mu"], made["sigma"], c, d)

    @torch.no_grad()
    def table(self, network: str | None) -> GGDMTable:
        """The table, learned for a network of this fingerprint."""
        return GGDMTable(self.first.schedule, **self(), network=network)

    def _levels(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        return self.first.schedule.alpha(tau), self.first.schedule.sigma(tau)

    def _tau(self) -> Tensor:
        """From the last time to the first one, which stay, in shares softmax(log of the first ones + w)."""
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
        """c and d of p m + q x_t = (p/alpha_t + q) x_t - p sigma_t/alpha_t eps; p starts from 1 and q from 0, or where
        the first table has them."""
        first = self.first
        c, d = (first.c, first.d) if first.c is not None and first.d is not None else tied(first.mu, first.sigma)
        levels = (*self._levels(tau), *self._levels(first.tau), c, d, self.p, self.q)
        alpha, sigma, a, s, c, d, p, q = (values[1:] for values in levels)  # clean data may have no noise to divide by
        p, q = d * a / s * (1 + p), c - d / s + q
        made = {"c": p / alpha + q, "d": p * sigma / alpha}
        return {name: torch.cat([torch.zeros_like(value[:1]), value]) for name, value in made.items()}


def _new(*size: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*size, dtype=torch.float64, device="cpu"))


def matched(r: Tensor, eta: Tensor, alpha: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """mu and sigma with a_t = alpha_t and v_t = s_t^2, where mu[t][u] is a multiple of r[t][u] for u > t, and
    sigma[t] = eta_t s_t for t < K.

    r (K+1, K+1); eta, alpha, s (K+1,). With N_u the noise of level u, n = sum_u r[t][u] N_u is brought to the length
    s_t sqrt(1 - eta_t^2); mu[t][0] = alpha_t - sum_u mu[t][u] alpha_u.
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
