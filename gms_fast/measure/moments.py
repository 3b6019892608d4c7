"""Mean and scatter of rows that are read once, in parts, which merge in any order."""

import torch
from torch import Tensor


class Moments:
    """Count, mean (D,) and scatter matrix (D, D) of all rows so far, float64 on the CPU.

    The scatter is sum (x - mean)(x - mean)^T. Two parts of n and m rows, with d = mean' - mean, merge to

        mean + d m/(n + m),   scatter + scatter' + d d^T n m/(n + m)

    (the pairwise update of Chan, Golub & LeVeque 1983). The mean is kept in two numbers, `mean + rest`, which are added
    without error (Knuth's TwoSum). Rows that lie far from zero compared with their spread therefore keep the digits of
    d. The order of the parts changes only the last bits of the scatter.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean, self.rest = (torch.zeros(width, dtype=torch.float64, device="cpu") for _ in range(2))
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device="cpu")

    def add(self, rows: Tensor) -> None:
        """Add rows (n, D), n >= 1, float64 on the CPU."""
        mean = rows.mean(0)
        away = rows - mean
        self._join(len(rows), mean, away.mean(0))
        self.scatter.addmm_(away.T, away)

    def merge(self, other: "Moments") -> None:
        """Add the rows of another, which does not change."""
        if other.count:
            self._join(other.count, other.mean, other.rest)
            self.scatter += other.scatter

    def _join(self, count: int, mean: Tensor, rest: Tensor) -> None:
        """Merge count and mean, and add the term of d d^T to the scatter."""
        total = self.count + count
        if self.count:
            apart = (mean - self.mean) + (rest - self.rest)
            self.scatter.addr_(apart, apart, alpha=self.count * count / total)
            mean, rest = _two_sum(self.mean, self.rest + apart * (count / total))
        self.count, self.mean, self.rest = total, mean.clone(), rest.clone()


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded sum a + b, and its rounding error."""
    total = a + b
    shared = total - a
    return total, (a - (total - shared)) + (b - shared)
