"""A hidden Markov model with two states, which are summed out.

    theta1, theta2 ~ Dirichlet(1, 1), the rows of the transition matrix,
    mu ~ Normal(3, 1) x Normal(10, 1) where 0 < mu_1 < mu_2, not normalized on that set,
    y_t | state k ~ Normal(mu_k, 1),  t = 1..100, and weight 1 for either state at t = 1.

`model` asks for mu_1 < mu_2 alone: mu_1 is 3.0, give or take 0.2.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.trust.posteriors.pieces import column, flat_ordered

NAME = "hmm_example-hmm_example"


def data(raw: dict[str, Any]) -> tuple[Tensor]:
    """The observed series, shape (100,)."""
    return (column(raw["y"]),)


def model(y: Tensor) -> None:
    rows = [pyro.sample(f"theta{j}", dist.Dirichlet(y.new_ones(2))) for j in (1, 2)]
    mu = pyro.sample("mu", flat_ordered(y, 2))
    prior = dist.Normal(y.new_tensor([3.0, 10.0]), 1.0).to_event(1)
    pyro.factor("mu_prior", prior.log_prob(mu))
    # DiscreteHMM begins with a transition, and normalizes what it begins with.
    first = dist.Normal(mu, 1.0).log_prob(y[0])
    pyro.factor("y_1", first.logsumexp(-1))
    transition = torch.stack(rows, -2).log()[..., None, :, :]
    emission = dist.Normal(mu[..., None, :], 1.0)
    rest = dist.DiscreteHMM(first, transition, emission, duration=len(y) - 1)
    pyro.sample("y", rest, obs=y[1:])
