"""A toy: one latent number, one model parameter, one variational parameter.

    z ~ Normal(0, 1),  x_i ~ Normal(theta z, sqrt(1/2)),  i = 1..100,  theta = 1.

The log-density of x_i given z is -(x_i - theta z)^2 - log(pi) / 2. The guide of the file has the
scale of the likelihood and a mean to learn, q(z) = Normal(phi, sqrt(1/2)), so that
log q(z) = -(z - phi)^2 - log(pi) / 2. The posterior is ten times as narrow as q: the ELBO stays
below the evidence, whatever phi is.

In `model`, which the command line uses, theta is fixed, so there is one posterior. In
`model_learnt` theta is a parameter, learnt together with the guide. With the evidence in place of
the ELBO one would learn `maximum_likelihood`; with this guide one learns `largest_elbo`. They are
close, but not the same: a bound that is not tight moves the parameters of the model too.

Everything is Gaussian and known exactly: the posterior and the evidence (`exact`), and the ELBO of
every q (`elbo`).

Data: 100 draws from Normal(0, 1), simulated by a fixed seed; there is no z behind them.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

NUM_OBSERVATIONS = 100
VARIANCE = 0.5
"""Of x given z, and of the guide."""


def data() -> tuple[Tensor]:
    """Observations x, shape (100,)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_OBSERVATIONS, generator=generator, dtype=torch.float64)
    return (x.to(torch.get_default_dtype()),)


def model(x: Tensor) -> None:
    """theta is 1."""
    _observe(x, x.new_ones(()))


def model_learnt(x: Tensor) -> None:
    """theta is the parameter "theta", at first 1."""
    _observe(x, pyro.param("theta", lambda: x.new_ones(())))


def _observe(x: Tensor, theta: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("observation", len(x)):
        pyro.sample("x", dist.Normal(theta * z, VARIANCE**0.5), obs=x)


def guide(x: Tensor) -> None:
    """q(z) of a fixed scale; its mean is the parameter "phi", at first 0."""
    phi = pyro.param("phi", lambda: x.new_zeros(()))
    pyro.sample("z", dist.Normal(phi, VARIANCE**0.5))


guides = {"fixed-scale": lambda: guide}


def exact(x: Tensor, theta: float = 1.0) -> dict[str, Any]:
    """The posterior and the log evidence, in closed form.

    With u = N theta^2 / VARIANCE and m the mean of x,

        z | x ~ Normal(theta m N / VARIANCE / (1 + u), (1 + u)^-1/2).

    Args:
        x: observations, shape (N,).
        theta: the model parameter.

    Returns:
        `log_evidence`, log p(x) in nats; `mean` and `sd` of the posterior, by site, as float64
        tensors.
    """
    x = x.double()
    precision = 1 + len(x) * theta**2 / VARIANCE
    mean = theta * x.sum() / VARIANCE / precision
    sd = torch.full_like(mean, precision**-0.5)
    # No other q has an ELBO as large as that of the posterior.
    return {
        "log_evidence": elbo(x, theta, float(mean), float(sd)),
        "mean": {"z": mean},
        "sd": {"z": sd},
    }


def elbo(x: Tensor, theta: float, phi: float, scale: float = VARIANCE**0.5) -> float:
    """E_q[log p(x, z)] - E_q[log q(z)] for q(z) = Normal(phi, scale), in nats.

    Args:
        x: observations, shape (N,).
        theta: the model parameter.
        phi: mean of q.
        scale: standard deviation of q.
    """
    x = x.double()
    misfit = float(((x - theta * phi) ** 2).sum()) + len(x) * (theta * scale) ** 2
    log_likelihood = -misfit / (2 * VARIANCE) - len(x) / 2 * math.log(2 * math.pi * VARIANCE)
    kl = (phi**2 + scale**2 - 1) / 2 - math.log(scale)
    return log_likelihood - kl


def maximum_likelihood(x: Tensor) -> float:
    """The theta with the largest evidence, of the two that differ by their sign the positive one.

    With t = N m^2 / VARIANCE, where m is the mean of the N values of x, that is where
    u = N theta^2 / VARIANCE = t - 1, or 0 if t is below 1.

    Args:
        x: observations, shape (N,).
    """
    return _theta(x, _signal(x) - 1)


def largest_elbo(x: Tensor) -> tuple[float, float]:
    """theta and phi with the largest ELBO under the guide of fixed scale, theta not negative.

    With t and u as in `maximum_likelihood` and the best phi for each theta, the ELBO is
    t u / (1 + u) / 2 - VARIANCE u / 2 and a constant, so that u = (t / VARIANCE)^1/2 - 1, or 0 if
    t is below VARIANCE.

    Args:
        x: observations, shape (N,).
    """
    theta = _theta(x, (_signal(x) / VARIANCE) ** 0.5 - 1)
    return theta, float(exact(x, theta)["mean"]["z"])


def _signal(x: Tensor) -> float:
    return len(x) * float(x.double().mean()) ** 2 / VARIANCE


def _theta(x: Tensor, u: float) -> float:
    return (max(u, 0.0) * VARIANCE / len(x)) ** 0.5
