"""How good are the embedded model's digits? `python bench/digits.py [--steps 10] [--solver gms] [--out FILE]`.

A small convolutional classifier is trained on 4,000 real digits, judged on 1,000 others, and then asked how sure it
is of generated ones.
"""

import argparse
import json
from pathlib import Path

import torch
from timing import environment
from torch import Tensor, nn

import gms_fast
from gms_fast import data

HELD_OUT = 1000


def real_digits(seed: int = 0) -> tuple[Tensor, Tensor]:
    """MNIST-5k in one fixed random order: images (5000, 1, 28, 28) and labels."""
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(seed))
    return data.load("mnist5k")[order], data.load_labels("mnist5k")[order]


def train_classifier(images: Tensor, labels: Tensor, epochs: int, seed: int = 0) -> nn.Module:
    """A convolutional network with dropout, trained on randomly shifted digits."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Dropout(0.4), nn.Linear(128, 10)),
        )
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(epochs):
            for batch in torch.randperm(len(images)).split(64):
                dx, dy = (int(v) for v in torch.randint(-2, 3, (2,)))
                x = torch.roll(images[batch], (dy, dx), dims=(2, 3))  # the border is empty
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(x), labels[batch]).backward()
                optimiser.step()
    return net.eval()


@torch.no_grad()
def judge(net: nn.Module, images: Tensor) -> dict[str, object]:
    """Share of images of which the classifier is more than 90 % sure, and how many it sees of each class."""
    confidence, label = net(images).softmax(1).max(1)
    counts = torch.bincount(label, minlength=10).tolist()
    return {"confident": round(float((confidence > 0.9).float().mean()), 4), "classes": counts}


def scores(
    steps: int, solver: str, samples: int, seed: int = 0, model: str = "mnist", epochs: int = 30
) -> dict[str, object]:
    images, labels = real_digits()
    net = train_classifier(images[HELD_OUT:], labels[HELD_OUT:], epochs)
    with torch.no_grad():
        accuracy = float((net(images[:HELD_OUT]).argmax(1) == labels[:HELD_OUT]).float().mean())
    network = gms_fast.load(model)
    parts = [
        gms_fast.sample(network, steps, solver=solver, n=min(100, samples - i), seed=seed, sample_offset=i)
        for i in range(0, samples, 100)
    ]
    return {
        "classifier accuracy on held-out real digits": round(accuracy, 4),
        "real held-out digits": judge(net, images[:HELD_OUT]),
        f"{samples} samples, {solver}, {steps} steps": judge(net, torch.cat(parts)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mnist", help="a name or path that gms_fast.load takes")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--solver", default="gms")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument(
        "--epochs", type=int, default=30, help="of the classifier: fewer make it less sure of real digits"
    )
    parser.add_argument("--out", type=Path, help="write the scores as JSON")
    args = parser.parse_args()
    result = scores(args.steps, args.solver, args.samples, model=args.model, epochs=args.epochs)
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps({"environment": environment(), **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
