"""Feature networks that come with the package."""

import pytest
import torch

from gms_fast import data, search
from gms_fast.search.checks import check_features
from gms_fast.search.features import pixels


def test_features_of_the_digits():
    net = search.load_features("digits")
    for dtype in (torch.float32, torch.float64):
        assert check_features(net, (1, 8, 8), torch.device("cpu"), dtype) == 160
        assert check_features(net.half(), (1, 8, 8), torch.device("cpu"), dtype) == 160
        assert check_features(pixels, (1, 8, 8), torch.device("cpu"), dtype) == 64
        net.float()
    with pytest.raises(ValueError, match=r"images must be \(N, 1, 8, 8\)"):
        check_features(net, (1, 28, 28), torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="features must be one of mnist5k, digits"):
        search.load_features("cifar")


def test_features_tell_digits_apart():

    for name in ("digits", "mnist5k"):
        images, labels = data.load(name), data.load_labels(name)
        net = search.load_features(name)
        assert (net.classes(net(images[:1000])).argmax(1) == labels[:1000]).float().mean() > 0.97


pytestmark = pytest.mark.usefixtures("one_thread")
