"""Fixtures that several test files share."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Small networks only lose by sharing their work, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
