"""Test log-likelihood of auto-encoders of Caltech-101 silhouettes, one stochastic layer.

Run from the project's root: python -m tests.benchmarks.papers.caltech --data FILE.npz
The file has packed bits: `train` (4100, 98), `test` (2307, 98) (`np.packbits` of 28 x 28 pixels;
B. Marlin's split of the silhouettes). A row at K = 5 takes ten minutes of one core, at K = 50 half
an hour.

Source: Y. Li and R. E. Turner (2016), Renyi divergence variational inference, NeurIPS.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.papers.autoencoder import (
    OBJECTIVES,
    Network,
    held_out_log_likelihood,
    train,
)
from tests.benchmarks.papers.minibatches import Batches
from tests.benchmarks.papers.published import DEVICES, Result, Setting, arguments, report

PUBLISHED = {
    ("VAE", 5): -119.69,
    ("IWAE", 5): -117.89,
    ("VAE", 50): -119.61,
    ("IWAE", 50): -117.21,
}
PASSES = [2**i for i in range(8)]
NETWORK = Network(hidden=(500,), num_latents=200)
BATCH_SIZE = 20
NUM_TEST_PARTICLES = 5000


def settings(passes: list[int]) -> list[Setting]:
    """The paper's, from its appendix and from the code that it builds on, and ours."""
    return [
        Setting("network", "784-500-200, tanh", "the same"),
        Setting("passes over the data", f"{sum(PASSES)} (2^i, i = 0..7)", f"{sum(passes)}"),
        Setting("learning rate", "10^(-3 - i/7) (text: 10^(-4 - i/7))", "10^(-3 - i/7)"),
        Setting("Adam", "beta 0.9, 0.999, epsilon 1e-4", "the same"),
        Setting("batch", BATCH_SIZE, "the same"),
        Setting("gradient", "pathwise", "the same"),
        Setting("test log-likelihood", "IW-5000", "the same, mean of 2307 images ± its error"),
    ]


def images(path: Path, name: str, device: str) -> Tensor:
    """Pixels, 0 or 1, (N, 784)."""
    with np.load(path) as arrays:
        return torch.tensor(np.unpackbits(arrays[name], axis=1), device=device).float()


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Train and evaluate."""
    pixels, held_out = (images(options.data, name, options.device) for name in ("train", "test"))
    num_test = NUM_TEST_PARTICLES
    if options.quick:
        pixels, held_out, num_test = pixels[:1000], held_out[:20], 100
    for k in options.particles:
        for name in options.objectives:
            model, guide, trained = train(
                NETWORK,
                OBJECTIVES[name](k),
                Batches((pixels,), BATCH_SIZE),
                options.passes,
                options.seed,
            )
            found = held_out_log_likelihood(model, guide, held_out, num_test)
            note = f"{trained.seconds / 60:.0f} min of training; {trained.compilation}"
            yield Result(f"{name}, K = {k}", (PUBLISHED[name, k], 0.0), found, note)


def main(arguments_: list[str]) -> list[Result]:
    """Print the tables."""
    parser = arguments(__doc__, "caltech101_silhouettes28.npz", DEVICES)
    parser.add_argument("--particles", nargs="+", type=int, choices=[5, 50], default=[5])
    parser.add_argument(
        "--objectives", nargs="+", choices=list(OBJECTIVES), default=["VAE", "IWAE"]
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and draws")
    parser.add_argument("--passes", nargs=8, type=int, default=PASSES)
    options = parser.parse_args(arguments_)
    if options.quick:
        options.passes = [1, *[0] * 7]
    return report(
        options, "Caltech-101 silhouettes, test log-likelihood (nats)", settings(options.passes),
        measure,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
