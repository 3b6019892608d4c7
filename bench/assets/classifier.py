"""Train the digit classifiers that give features to quality measures and searches.

    python -m bench.assets.classifier [DATA ...] [--search]

Each is trained on four fifths of a data set, in a fixed random order, and its accuracy on the rest is printed. Training
images are shifted by up to a fourteenth of their side, and noise is added. The files go to
gms_fast/quality/classifiers/. With --search they are the networks of `gms_fast.search`, which have another
architecture and seed.
"""

import argparse

import torch
from torch import Tensor, nn

from gms_fast import data
from gms_fast.quality import classifier
from gms_fast.quality.classifier import DigitClassifier
from gms_fast.search import features
from gms_fast.storage import tensors as stored


def held_out(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, labels, and a mask of those that the classifier has not seen."""
    images, labels = data.load(name), data.load_labels(name)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images, labels, order % 5 == 0


def train(kind: type[nn.Module], images: Tensor, labels: Tensor, epochs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = kind(images.shape[-1])
    reach = net.side // 14
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            dx, dy = (int(v) for v in torch.randint(-reach, reach + 1, (2,)))
            x = torch.roll(images[batch], (dy, dx), dims=(2, 3))  # the border is empty
            x = x + 0.15 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)
            optimiser.zero_grad()
            nn.functional.cross_entropy(net.classes(net.hidden(x)), labels[batch]).backward()
            optimiser.step()
        decay.step()
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", default=data.names(), choices=data.names(), help="data sets (default: all)")
    parser.add_argument("--search", action="store_true", help="train the networks of gms_fast.search")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the data (default: %(default)s)")
    args = parser.parse_args()
    folder, kind = (features.WEIGHTS, features.DigitFeatures) if args.search else (classifier.WEIGHTS, DigitClassifier)
    folder.mkdir(exist_ok=True)
    for name in args.data:
        images, labels, unseen = held_out(name)
        net = train(kind, images[~unseen], labels[~unseen], args.epochs, seed=int(args.search))
        file = folder / f"{name}.safetensors"
        stored.write(file, {k: w.half() for k, w in net.state_dict().items()}, {})
        with torch.no_grad():
            found = net.classes(net.hidden(images[unseen])).softmax(1)
            right = (found.argmax(1) == labels[unseen]).float().mean()
            sure = (found.amax(1) > 0.9).float().mean()
        print(f"{file}: {right:.1%} of {int(unseen.sum())} held-out digits right, {sure:.1%} with more than 0.9")


if __name__ == "__main__":
    main()
