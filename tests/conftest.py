"""Fixtures that several test files share, and how tests share the processors."""

import os

import pytest
import torch

import bench  # noqa: F401 - has what is installed come before the checkout


@pytest.fixture(scope="module")
def one_thread():
    """Small networks only lose by sharing their work, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_configure(config):
    """Processes of pytest-xdist divide the processors among them, and so do the processes that they start."""
    if hasattr(config, "workerinput"):
        share = max(1, (os.cpu_count() or 1) // config.workerinput["workercount"])
        torch.set_num_threads(share)
        os.environ.setdefault("OMP_NUM_THREADS", str(share))


def pytest_collection_modifyitems(items):
    """Long tests start first, so that none is left to one process at the end."""
    items.sort(key=lambda item: -max((mark.args[0] for mark in item.iter_markers("slow")), default=0))
