"""The classifiers of digits."""

import pytest
import torch

from gms_fast.quality import classifier

pytestmark = pytest.mark.filterwarnings("ignore:Metric `Kernel")


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_classifier_knows_digits_it_has_not_seen(name, monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath / "bench"))
    from bench.assets.classifier import held_out

    images, labels, unseen = held_out(name)
    net = classifier.load(name)
    features = net.features(images[unseen])
    assert features.shape == (int(unseen.sum()), classifier.FEATURES)
    assert (net(images[unseen]).argmax(1) == labels[unseen]).float().mean() > 0.95
    assert (net.confidence(features) > 0.9).float().mean() > 0.9


def test_classifier_refuses_other_images():
    with pytest.raises(ValueError, match=r"images must be \(N, 1, 8, 8\): got \(2, 1, 28, 28\)"):
        classifier.load("digits").features(torch.zeros(2, 1, 28, 28))
    with pytest.raises(ValueError, match="there are classifiers for mnist5k, digits: got 'cifar'"):
        classifier.load("cifar")
