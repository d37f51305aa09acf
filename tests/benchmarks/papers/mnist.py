"""Test log-likelihood of auto-encoders of MNIST, one stochastic layer.

Run from the project's root: python -m tests.benchmarks.papers.mnist --data FILE.npz
The file is Keras's `mnist.npz`: `x_train` (60000, 28, 28) and `x_test` (10000, 28, 28), 0 to 255.
The default, 420 passes over the data in batches of 100, is made for half an hour of one core a row.
The paper's schedule, 3280 passes in batches of 20 (`--passes 1 3 9 27 81 243 729 2187 --batch 20
--epsilon 1e-4`), is ten million steps for each row and meant for `--device cuda`.

Source: Y. Burda, R. Grosse and R. Salakhutdinov (2016), Importance weighted autoencoders, ICLR.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.papers.autoencoder import (
    ADAM_EPSILON,
    LEARNING_RATE,
    OBJECTIVES,
    Network,
    corrected_log_likelihood,
    train,
)
from tests.benchmarks.papers.minibatches import Batches
from tests.benchmarks.papers.published import DEVICES, Result, Setting, arguments, report

PUBLISHED = {  # negative log-likelihoods, nats
    ("VAE", 1): 86.76,
    ("VAE", 5): 86.47,
    ("VAE", 50): 86.35,
    ("IWAE", 1): 86.76,
    ("IWAE", 5): 85.54,
    ("IWAE", 50): 84.78,
}
PASSES = [3**i for i in range(8)]
SHORT_PASSES = [140, 80, 50, 40, 35, 35, 25, 15]
NETWORK = Network(hidden=(200, 200), num_latents=50)
BATCH_SIZE = 20
LARGE_BATCH = 100
SMALL_EPSILON = 1e-8
NUM_TEST_PARTICLES = 5000


def settings(options: argparse.Namespace) -> list[Setting]:
    """The paper's, and ours."""
    return [
        Setting("network", "784-200-200-50, tanh", "the same"),
        Setting("passes over the data", f"{sum(PASSES)} (3^i, i = 0..7)", _passes(options.passes)),
        Setting("learning rate", f"{LEARNING_RATE} * 10^(-i/7)", "the same"),
        Setting("Adam", f"beta 0.9, 0.999, epsilon {ADAM_EPSILON}", f"epsilon {options.epsilon:g}"),
        Setting("batch", BATCH_SIZE, options.batch),
        Setting("pixels", "drawn anew for every batch", "the same"),
        Setting("test images", "10000, binarized once", "the same"),
        Setting(
            "test log-likelihood",
            f"IW-{NUM_TEST_PARTICLES}",
            f"IW-100, and what IW-{NUM_TEST_PARTICLES} adds for {options.images} images",
        ),
    ]


def _passes(passes: list[int]) -> str:
    return f"{sum(passes)} ({', '.join(map(str, passes))})"


def images(path: Path, name: str, device: str) -> Tensor:
    """Intensities in [0, 1], (N, 784)."""
    with np.load(path) as arrays:
        pixels = torch.tensor(arrays[name], device=device)
    return pixels.reshape(len(pixels), -1).float() / 255


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Train and evaluate."""
    pixels, held_out = (
        images(options.data, f"x_{part}", options.device) for part in ("train", "test")
    )
    num_test = NUM_TEST_PARTICLES
    if options.quick:
        pixels, held_out, num_test = pixels[:2000], held_out[:100], 100
    with torch.random.fork_rng():
        torch.manual_seed(0)
        held_out = torch.bernoulli(held_out)
    for k in options.particles:
        for name in options.objectives:
            if k == 1 and name == "IWAE":
                continue  # the same as VAE
            batches = Batches((pixels,), options.batch, torch.bernoulli)
            model, guide, trained = train(
                NETWORK, OBJECTIVES[name](k), batches, options.passes, epsilon=options.epsilon
            )
            found = corrected_log_likelihood(model, guide, held_out, num_test, options.images)
            note = f"{trained.seconds / 60:.0f} min of training"
            ours = (-found.value, found.se)
            yield Result(f"{name}, K = {k}", (PUBLISHED[name, k], 0.0), ours, note)


NOTE = "A shorter schedule ends above the published numbers; it can show the order of the rows."


def main(arguments_: list[str]) -> list[Result]:
    """Print the tables."""
    parser = arguments(__doc__, "mnist.npz", DEVICES)
    parser.add_argument("--particles", nargs="+", type=int, choices=[1, 5, 50], default=[1, 5])
    parser.add_argument(
        "--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES)
    )
    parser.add_argument("--passes", nargs=8, type=int, default=SHORT_PASSES)
    parser.add_argument("--batch", type=int, default=LARGE_BATCH)
    parser.add_argument("--epsilon", type=float, default=SMALL_EPSILON, help="Adam's")
    parser.add_argument("--images", type=int, default=300, help="evaluated with all particles")
    options = parser.parse_args(arguments_)
    if options.quick:
        options.passes, options.images = [1, *[0] * 7], 20
    title = "MNIST, negative test log-likelihood (nats)"
    return report(options, title, settings(options), measure, NOTE)


if __name__ == "__main__":
    main(sys.argv[1:])
