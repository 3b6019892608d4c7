"""Small generation runs for tests: network, defaults, and processes."""

import os
import signal
import sys
import time
import traceback

import torch
from torch import nn

from gms_fast import generate
from gms_fast.schedules import VPLinear

SMALL = {"n": 21, "batch_size": 4, "shard_size": 8, "steps": 2, "solver": "ddpm"}  # shards of 8, 8 and 5
NAMES = ["000000000-000000007", "000000008-000000015", "000000016-000000020"]
LONGEST = 60.0  # seconds until a hanging process is killed


class Net(nn.Module):
    """Noise network of images with an optional brightness; `seen` gets the rows of each call."""

    sample_shape, schedule, prediction, clip = (1, 4, 4), VPLinear(), "noise", (-1.0, 1.0)

    def __init__(self, seed=0, seen=lambda rows: None):
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Conv2d(1, 1, 3, padding=1)
        self._seen = seen

    def forward(self, x, t, brightness=None):
        self._seen(len(x))
        shift = 0 if brightness is None else brightness.view(-1, 1, 1, 1)
        return torch.tanh(self.inner(x)) + 0.5 * x - shift


def made(out, model=None, **options):
    """Run `SMALL` in the folder `out`, with the given options replaced."""
    return generate(Net() if model is None else model, out, **{**SMALL, **options})


def fails_at(call, error=None):
    """Return a callable for `seen` that raises at the call of that number, counted from 0."""
    calls = iter(range(call))

    def seen(rows):
        if next(calls, None) is None:
            raise error or RuntimeError("broken network")

    return seen


def forked(act, **environment):
    """Fork a child that runs `act` and ends, with status 1 and a traceback on failure."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update({name: str(value) for name, value in environment.items()})
        torch.set_num_threads(1)  # threads do not outlive a fork
        act()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def statuses(children):
    """Wait for children and return their exit statuses; hanging ones are killed."""
    return [_status(child, time.monotonic() + LONGEST) for child in children]


def _status(child, end):
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(ended[1])


def appears(*paths):
    """Wait until every path exists."""
    end = time.monotonic() + LONGEST
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, f"there is nothing at {paths}"
        time.sleep(0.005)
