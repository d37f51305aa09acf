"""A mixture of two Gaussians on the line; which of them a point is from is summed out.

mu: the order statistics of two Normal(0, 2),  sigma_k ~ HalfNormal(2),  theta ~ Beta(5, 5),
y_i ~ theta Normal(mu_1, sigma_1) + (1 - theta) Normal(mu_2, sigma_2),  i = 1..1000.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.trust.posteriors.pieces import column, flat_ordered

NAME = "low_dim_gauss_mix-low_dim_gauss_mix"


def data(raw: dict[str, Any]) -> tuple[Tensor]:
    """The points, shape (1000,)."""
    return (column(raw["y"]),)


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", flat_ordered(y, 2))
    prior = dist.Normal(y.new_zeros(2), 2.0).to_event(1)
    pyro.factor("mu_prior", prior.log_prob(mu) + math.log(2))  # half of the plane is ordered
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_full((2,), 2.0)).to_event(1))
    theta = pyro.sample("theta", dist.Beta(y.new_full((), 5.0), 5.0))
    shares = dist.Categorical(torch.stack([theta, 1 - theta], -1))
    with pyro.plate("point", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(shares, dist.Normal(mu, sigma)), obs=y)
