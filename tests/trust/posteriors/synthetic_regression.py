"""Linear regression with proper priors and no intercept; the sds of beta are about 0.001.

beta_d ~ Normal(0, 10),  sigma ~ HalfNormal(10),  y_i ~ Normal(x_i . beta, sigma).
"""

from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from tests.trust.posteriors.pieces import column, linear

NAME = "sblri-blr"


def data(raw: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Covariates, shape (100, 5), and responses, shape (100,)."""
    return column(raw["X"]), column(raw["y"])


def model(X: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(X.new_zeros(X.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(X.new_full((), 10.0)))
    with pyro.plate("observation", len(y)):
        pyro.sample("y", dist.Normal(linear(beta, X), sigma), obs=y)
