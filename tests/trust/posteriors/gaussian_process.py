"""Regression with a Gaussian process whose values are integrated out.

    rho ~ Gamma(25, 4),  alpha ~ HalfNormal(2),  sigma ~ HalfNormal(1),
    y ~ Normal(0, C),  C_ij = alpha^2 exp(-(x_i - x_j)^2 / (2 rho^2)) + [i = j] sigma.

sigma is the variance of the noise, not its standard deviation.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.trust.posteriors.pieces import column

NAME = "gp_pois_regr-gp_regr"


def data(raw: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Places x and values y, each shape (11,)."""
    return column(raw["x"]), column(raw["y"])


def model(x: Tensor, y: Tensor) -> None:
    rho = pyro.sample("rho", dist.Gamma(x.new_full((), 25.0), 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(x.new_full((), 2.0)))
    sigma = pyro.sample("sigma", dist.HalfNormal(x.new_ones(())))
    rho, alpha, sigma = (value[..., None, None] for value in (rho, alpha, sigma))
    squared_distance = (x[:, None] - x) ** 2
    covariance = alpha**2 * (-squared_distance / (2 * rho**2)).exp() + sigma * torch.eye(
        len(x), dtype=x.dtype
    )
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(x), covariance), obs=y)
