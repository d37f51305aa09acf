"""Two correlated Gaussians: what a mean-field guide does to a correlation.

    z ~ Normal(0, C),  C = [[1, rho], [rho, 1]],  rho = 0.95.

There are no observations: the prior is the posterior, and the log evidence is 0. The mean-field
Gaussian closest in KL(q || p) has the right means and the sds of each coordinate given the others,
sqrt(1 - rho^2) = 0.31 in place of 1, and its ELBO is log(1 - rho^2) / 2 = -1.16 (`mean_field`). It
is too narrow by that factor wherever one looks along an axis, however long it is trained.

Data: C, which also says in which dtype and on which device. The example, with these formulas, is
that of C. M. Bishop (2006), Pattern recognition and machine learning, section 10.1.2.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

RHO = 0.95


def data() -> tuple[Tensor]:
    """The covariance C, shape (2, 2)."""
    return (torch.tensor([[1.0, RHO], [RHO, 1.0]]),)


def model(covariance: Tensor) -> None:
    """Both coordinates in one site."""
    zero = covariance.new_zeros(len(covariance))
    pyro.sample("z", dist.MultivariateNormal(zero, covariance))


def exact(covariance: Tensor) -> dict[str, Any]:
    """The posterior, which is the prior.

    Args:
        covariance: C, shape (D, D).

    Returns:
        `log_evidence`, 0; `mean`, `sd` and `covariance` of the posterior, by site, as float64
        tensors.
    """
    c = covariance.double()
    return {
        "log_evidence": 0.0,
        "mean": {"z": c.new_zeros(len(c))},
        "sd": {"z": c.diagonal().sqrt()},
        "covariance": {"z": c},
    }


def mean_field(covariance: Tensor) -> dict[str, Any]:
    """The fully factorized Gaussian with the largest ELBO: q_d = Normal(0, (C^-1)_dd^-1/2).

    Args:
        covariance: C, shape (D, D).

    Returns:
        `elbo` of the best guide, in nats; its `mean` and `sd`, by site, as float64 tensors.
    """
    c = covariance.double()
    sd = c.inverse().diagonal() ** -0.5
    elbo = sd.log().sum() - c.logdet() / 2
    return {"elbo": float(elbo), "mean": {"z": torch.zeros_like(sd)}, "sd": {"z": sd}}
