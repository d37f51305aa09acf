"""What several of the programs are made of."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import OrderedTransform
from torch import Tensor


def column(values: list[float]) -> Tensor:
    """A column of a data file, shape (N,)."""
    return torch.tensor(values, dtype=torch.float64)


def flat(like: Tensor, size: int) -> dist.TorchDistribution:
    """Density 1 on the vectors of this size."""
    return dist.Normal(like.new_zeros(size), 1.0).to_event(1).mask(False)


def flat_positive(like: Tensor) -> dist.TorchDistribution:
    """Density 1 on the positive half: of the scale itself, not of its logarithm."""
    return dist.LogNormal(like.new_zeros(()), 1.0).mask(False)


def flat_ordered(like: Tensor, size: int) -> dist.TorchDistribution:
    """Density 1 on the increasing vectors of this size."""
    base = dist.Normal(like.new_zeros(size), 1.0).to_event(1)
    return dist.TransformedDistribution(base, OrderedTransform()).mask(False)


def linear(beta: Tensor, X: Tensor) -> Tensor:
    """X beta, shape (N,); (..., N) where beta is (..., 1, D), left of a plate of N."""
    return (beta @ X.T).reshape(*beta.shape[:-2], len(X))


def regress(X: Tensor, y: Tensor, sigma_prior: dist.TorchDistribution) -> None:
    """y_i ~ Normal(x_i . beta, sigma), beta flat, sigma from this prior."""
    beta = pyro.sample("beta", flat(X, X.shape[1]))
    sigma = pyro.sample("sigma", sigma_prior)
    with pyro.plate("observation", len(y)):
        pyro.sample("y", dist.Normal(linear(beta, X), sigma), obs=y)


def flat_regression(X: Tensor, y: Tensor) -> None:
    """y_i ~ Normal(x_i . beta, sigma), beta and sigma flat."""
    regress(X, y, flat_positive(X))
