"""Train the classifier of small photographs, whose features are called "cifar10".

    python -m bench.assets.colour_classifier --data A.npz --test B.npz

The files hold `images` (N, 3, 32, 32) and `labels` (N,) of ten classes, 0 .. 9. The shipped classifier is trained on
CIFAR-10 (JPEG 75). Training uses SGD with a one-cycle rate, and images that are mirrored and shifted by up to four
pixels. The test images are used once, at the end, for the accuracy that is printed. The result goes to
gms_fast/quality/classifiers/cifar10.safetensors, or to --out.

--epochs     12 take about twenty minutes of one CPU core that computes in bfloat16; on a GPU more are affordable
--precision  bfloat16 is faster if the processor has instructions for it
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gms_fast import data
from gms_fast.quality import classifier
from gms_fast.quality.classifier import ColourClassifier
from gms_fast.storage import tensors as stored

BATCH, REACH, RATE = 128, 4, 0.1


def moved(images: Tensor) -> Tensor:
    """Mirror images at random and shift them by up to `REACH` pixels, with reflected borders."""
    n, channels, height, width = images.shape
    x = nn.functional.pad(images, (REACH,) * 4, mode="reflect")
    first = torch.randint(2 * REACH + 1, (2, n, 1), device=images.device)
    columns = first[1] + torch.arange(width, device=images.device)
    columns = torch.where(torch.rand(n, 1, device=images.device) < 0.5, columns, columns.flip(1))
    rows = first[0] + torch.arange(height, device=images.device)
    picture = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return x[picture, channel, rows[:, None, :, None], columns[:, None, None, :]]


def batches(images: Tensor, labels: Tensor, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield whole batches of augmented images with their classes."""
    for _ in range(epochs):
        for picked in torch.randperm(len(images), device=images.device).split(BATCH)[: len(images) // BATCH]:
            yield moved(images[picked]), labels[picked]


def train(images: Tensor, labels: Tensor, epochs: int, precision: torch.dtype) -> ColourClassifier:
    """Train without label smoothing: measures count samples with a confidence above 0.9."""
    torch.manual_seed(0)
    device, steps = images.device, epochs * (len(images) // BATCH)
    net = ColourClassifier().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.25)
    for x, y in (bar := tqdm(batches(images, labels, epochs), total=steps)):
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            loss = nn.functional.cross_entropy(net(x.contiguous(memory_format=torch.channels_last)), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
        if bar.n % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=".npz of training images")
    parser.add_argument("--test", type=Path, required=True, help=".npz of test images")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the data (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="device of the training (default: %(default)s)")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of the training (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=classifier.WEIGHTS / "cifar10.safetensors", help="file of the weights"
    )
    args = parser.parse_args()
    seen, unseen = ((data.load(file), data.load_labels(file)) for file in (args.data, args.test))
    net = train(*(part.to(args.device) for part in seen), args.epochs, getattr(torch, args.precision)).cpu()
    state = net.to(memory_format=torch.contiguous_format).state_dict()
    stored.write(args.out, {k: w.half() if w.is_floating_point() else w for k, w in state.items()}, {})
    stored.load_into(net, args.out)
    found = net.classes(net.features(unseen[0])).softmax(1)
    right = (found.argmax(1) == unseen[1]).float().mean()
    sure = (found.amax(1) > 0.9).float().mean()
    print(f"{args.out}: {right:.1%} of {len(found)} test images right, {sure:.1%} with more than 0.9")


if __name__ == "__main__":
    main()
