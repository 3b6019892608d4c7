"""Loss of quality by bfloat16, with an embedded model and ten steps on a CPU.

    python -m bench.experiments.bfloat16 [-n 500]

It prints the feature Frechet distance to real digits of samples from equal seeds: in float32, with a state in bfloat16
(`sample(dtype=torch.bfloat16)`; the network stays in float32), and with the network under bfloat16 autocast.
"""

import argparse

import torch
from torch import Tensor

import gms_fast
from gms_fast.quality import classifier, measures, subjects

SOLVERS = ("gms", "ddim")
WAYS = {  # dtype of the state, network under autocast
    "float32": (torch.float32, False),
    "bfloat16 state": (torch.bfloat16, False),
    "bfloat16 autocast": (torch.float32, True),
}


def drawn(subject: subjects.Subject, solver: str, way: str, n: int, seed: int) -> Tensor:
    """Draw n samples (n, 1, 28, 28), returned in float32."""
    dtype, autocast = WAYS[way]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        x = gms_fast.sample(subject.model, 10, solver=solver, n=n, dtype=dtype, batch_size=64, seed=seed)
    return x.float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=500, help="samples of a run (default: 500)")
    parser.add_argument("--seeds", type=int, default=2, help="runs, each from seeds of its own (default: 2)")
    args = parser.parse_args()
    subject = subjects.build("mnist")
    net = classifier.load(str(subject.features))
    real = net.features(subject.reference)
    for solver in SOLVERS:
        for way in WAYS:
            runs = [drawn(subject, solver, way, args.n, seed) for seed in range(args.seeds)]
            found = [measures.frechet_distance(net.features(x), real) for x in runs]
            print(f"{solver:6} {way:20} {' '.join(f'{value:.3f}' for value in found)}", flush=True)


if __name__ == "__main__":
    main()
