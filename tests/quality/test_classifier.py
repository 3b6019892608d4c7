"""Classifiers of digits and of small photographs."""

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
    assert features.shape == (int(unseen.sum()), net.width)
    assert (net(images[unseen]).argmax(1) == labels[unseen]).float().mean() > 0.95
    assert (net.confidence(features) > 0.9).float().mean() > 0.9


def test_classifier_refuses_other_images():
    with pytest.raises(ValueError, match=r"images must be \(N, 1, 8, 8\): got \(2, 1, 28, 28\)"):
        classifier.load("digits").features(torch.zeros(2, 1, 28, 28))
    for shape in ((1, 32, 32), (3, 28, 28)):
        with pytest.raises(ValueError, match=r"images must be \(N, 3, 32, 32\): got \(2, "):
            classifier.load("cifar10").features(torch.zeros(2, *shape))
    with pytest.raises(ValueError, match="name must be one of the classifiers mnist5k, digits, cifar10: got 'cifar'"):
        classifier.load("cifar")


@pytest.mark.parametrize("name", classifier.SHAPES)
def test_classifier_is_small_and_sees_each_picture_alone(name):
    assert (classifier.WEIGHTS / f"{name}.safetensors").stat().st_size < 2**20
    net = classifier.load(name)
    images = torch.rand(4, *classifier.SHAPES[name], generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = net.features(images)
    assert features.shape == (4, net.width)
    assert torch.allclose(features[1:2], net.features(images[1:2]), atol=1e-5)
    assert net(images).shape == (4, 10)
    assert (net.confidence(features) > 0.1).all()  # the largest of ten


def test_colours_change_features():
    """Check that the same shapes in other colours have other features."""
    ramp = torch.linspace(-1, 1, 32).expand(3, 32, 32)
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    features = classifier.load("cifar10").features(colours[:, :, None, None] * ramp)
    assert torch.pdist(features).min() > 0.1 * features.norm(dim=1).mean()
