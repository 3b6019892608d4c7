"""The command gms-fast, for kills: with a checkpoint after every step, and finished work kept at once.

    torchrun --standalone --nproc-per-node 2 -m bench.faults.frequent train --data x.npy --out run

Forks call `keep_all` and the command themselves.
"""

import sys

from gms_fast import cli, interrupts, search, training
from gms_fast.measure import work


def keep_all() -> None:
    """Have this process keep work as often as there can be something to keep."""
    work.SECONDS = -1.0
    for train in (training.train_noise_network, training.train_moment_heads):
        train.__kwdefaults__["checkpoint_every"] = 1
    search.ggdm.__kwdefaults__.update(score_every=1, score_samples=8)


if __name__ == "__main__":
    interrupts.guard()
    keep_all()
    raise SystemExit(cli.main(sys.argv[1:]))
