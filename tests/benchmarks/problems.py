"""Models, guides and data of the benchmarks; `numpyro_models` has NumPyro's side of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

from models import eight_schools, logistic_regression, radon, vae

Program = Callable[..., Any]

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist_static_binarized_larochelle.npz"
BATCH_SIZE = 128


@dataclass(frozen=True)
class Problem:
    """What is fitted.

    Attributes:
        name: also that of NumPyro's counterpart.
        model: a Pyro model.
        make_guide: from the model to a new guide.
        data: the arguments of both.
    """

    name: str
    model: Program
    make_guide: Callable[[Program], Program]
    data: Callable[[], tuple[Tensor, ...]]


def simulated_logistic() -> tuple[Tensor, Tensor]:
    """Covariates (1000, 20) and labels (1000,), drawn from the model by a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((1000, 20), generator=generator)
    w = torch.randn(20, generator=generator)
    return x, torch.bernoulli(torch.sigmoid(x @ w), generator=generator)


def digits() -> tuple[Tensor]:
    """A batch of images of 784 pixels: binarized MNIST where it is, or random ones."""
    if MNIST.exists():
        with np.load(MNIST) as arrays:
            return (torch.tensor(np.unpackbits(arrays["train"][:BATCH_SIZE], axis=1)).float(),)
    pixels = torch.rand((BATCH_SIZE, 784), generator=torch.Generator().manual_seed(0))
    return ((pixels < 0.13).float(),)


def per_row(x: Tensor) -> None:
    """A global mean and a latent of its own for each row."""
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("row", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.StudentT(x.new_full((), 5.0), z, 0.5), obs=x)


def rows() -> tuple[Tensor]:
    """1000 numbers with mean 1 and variance 2, by a fixed seed."""
    return (1 + 2**0.5 * torch.randn(1000, generator=torch.Generator().manual_seed(0)),)


_PROBLEMS = [
    Problem("eight schools", eight_schools.model, AutoNormal, eight_schools.data),
    Problem("logistic", logistic_regression.model, AutoNormal, simulated_logistic),
    Problem("logistic MVN", logistic_regression.model, AutoMultivariateNormal, simulated_logistic),
    Problem("radon", radon.model, AutoNormal, radon.data),
    Problem("VAE", vae.model, lambda model: vae.Encoder(784), digits),
]
PROBLEMS = {problem.name: problem for problem in _PROBLEMS}
PER_ROW = Problem("per row", per_row, AutoNormal, rows)
