"""Fingerprints of the network, and comparison of schedules."""

import pytest
import torch
from torch import nn

from gms_fast.statistics import fingerprint

pytestmark = pytest.mark.usefixtures("one_thread")


def test_fingerprint_tells_networks_apart_and_survives_a_cast():
    network = nn.Linear(4, 3)
    print_ = fingerprint(network)
    assert len(print_) == 16
    compiled = nn.ModuleDict({"_orig_mod": network})  # how torch.compile wraps a network
    assert fingerprint(compiled) == print_
    assert fingerprint(network.bfloat16()) == fingerprint(network.float()) == print_
    with torch.no_grad():
        network.weight[0, 0] += 1
    assert fingerprint(network) != print_
    assert fingerprint(lambda x, t: x) is fingerprint(nn.Identity()) is None
    assert fingerprint(nn.ModuleDict({"a": network})) != fingerprint(nn.ModuleDict({"b": network}))
