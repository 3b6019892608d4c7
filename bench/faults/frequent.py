"""The command gms-fast for kill tests: it saves a checkpoint after every step.

    torchrun --standalone --nproc-per-node 2 -m bench.faults.frequent train --data x.npy --out run

Finished work is stored at once. Forked processes call `be` instead.
"""

import os
import resource
import signal
import sys
from collections.abc import Sequence
from multiprocessing import util
from typing import NoReturn

from gms_fast import cli, interrupts, search, training
from gms_fast.measure import work


def keep_all() -> None:
    """Make this process store its work as often as possible."""
    work.SECONDS = -1.0
    for train in (training.train_noise_network, training.train_moment_heads):
        train.__kwdefaults__["checkpoint_every"] = 1
    search.ggdm.__kwdefaults__.update(score_every=1, score_samples=8)


def be(arguments: Sequence[str], folder: str, words: int, largest: int | None = None) -> NoReturn:
    """Run the command in this fork and exit.

    Args:
        arguments: Arguments of the command.
        folder: Working directory.
        words: File descriptor for stderr.
        largest: Largest size of a file in bytes; None: no limit.
    """
    status = 1
    try:
        os.chdir(folder)
        limit = resource.RLIM_INFINITY if largest is None else largest
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        os.dup2(words, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in background jobs
        interrupts.guard()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupts.SIGNALS)
        keep_all()
        status = cli.main(arguments)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        util._run_finalizers(0)  # frees semaphores of a pool, as Python does at its exit
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    interrupts.guard()
    keep_all()
    raise SystemExit(cli.main(sys.argv[1:]))
