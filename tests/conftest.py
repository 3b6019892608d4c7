"""Shared fixtures, and the division of processors among test processes."""

import os

import pytest
import torch

import bench  # noqa: F401 - puts the installed package before the checkout on the path


@pytest.fixture(scope="module")
def one_thread():
    """Run on one thread: small networks gain nothing from more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_configure(config):
    """Divide the processors among the workers of pytest-xdist and their subprocesses."""
    if hasattr(config, "workerinput"):
        share = max(1, (os.cpu_count() or 1) // config.workerinput["workercount"])
        torch.set_num_threads(share)
        os.environ.setdefault("OMP_NUM_THREADS", str(share))


def pytest_collection_modifyitems(items):
    """Start long tests first, so that no worker runs one alone at the end."""
    items.sort(key=lambda item: -max((mark.args[0] for mark in item.iter_markers("slow")), default=0))
