"""Noise levels down to which `Teleport` can replace the embedded networks.

    python -m bench.experiments.pilot [--levels 16] [--images 250]

It prints the level that `gms_fast.statistics.pilot` proposes. By noise level it also prints the share of the network's
denoiser that the data's Gaussian explains, and the mean square errors of both against x_0.
"""

import argparse

import gms_fast
from gms_fast import data, statistics
from gms_fast.quality.subjects import LEARNED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levels", type=int, default=16, help="number of noise levels")
    parser.add_argument("--images", type=int, default=250, help="number of images")
    args = parser.parse_args()
    for name, source in LEARNED.items():
        images = data.load(source)
        images = images[:: max(1, len(images) // args.images)][: args.images]  # evenly spaced: they are sorted by class
        known = statistics.load_gaussian(name)
        found = statistics.pilot(gms_fast.load(name), images, known, levels=args.levels)
        print(f"{name}: until = {found.until and round(found.until, 1)}\n  sigma/alpha     R^2  Gaussian  network")
        for row in zip(*found[:4], strict=True):
            print("  {:11.2f} {:7.3f} {:9.3f} {:8.3f}".format(*row))


if __name__ == "__main__":
    main()
