"""An autoregression of order 5, given the first five of 200 values.

alpha ~ Normal(0, 10),  beta_k ~ Normal(0, 10),  sigma ~ HalfCauchy(2.5),
y_t ~ Normal(alpha + sum_k beta_k y_{t-k}, sigma),  t = 6..200.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.trust.posteriors.pieces import column, linear

NAME = "arK-arK"


def data(raw: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The five values before each, the latest first, shape (195, 5); the values, shape (195,)."""
    y, order = column(raw["y"]), raw["K"]
    return torch.stack([y[order - k : -k] for k in range(1, order + 1)], -1), y[order:]


def model(lagged: Tensor, y: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.Normal(y.new_zeros(()), 10.0))
    beta = pyro.sample("beta", dist.Normal(y.new_zeros(lagged.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(y.new_full((), 2.5)))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(alpha + linear(beta, lagged), sigma), obs=y)
