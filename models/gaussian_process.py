"""Regression with a Gaussian process: how smooth is the curve behind 25 points?

    length ~ LogNormal(0, 0.5),  amplitude ~ LogNormal(0, 0.5),  noise ~ LogNormal(-1, 0.5),
    y ~ Normal(0, C),  C_ij = amplitude^2 exp(-(x_i - x_j)^2 / (2 length^2)) + [i = j] noise^2.

The values of the curve are integrated out, which leaves three hyperparameters and one observation
of 25 dimensions: there is no plate, for nothing is independent. The evidence given the
hyperparameters is the density of y; the evidence itself is an integral over their logarithms,
whose priors are Normal: `exact`.

Data: 25 places x between 0 and 6, and y = sin(x) plus noise of sd 0.3, simulated by a fixed seed.
As in C. E. Rasmussen and C. K. I. Williams (2006), Gaussian processes for machine learning,
chapters 2 and 5.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

NUM_PLACES = 25
NOISE = 0.3
PRIORS = {"length": (0.0, 0.5), "amplitude": (0.0, 0.5), "noise": (-1.0, 0.5)}
"""Mean and sd of the logarithm of each."""


def data() -> tuple[Tensor, Tensor]:
    """Places x, in order, and values y, each of shape (25,)."""
    generator = torch.Generator().manual_seed(2006)
    x = 6 * torch.rand(NUM_PLACES, generator=generator, dtype=torch.float64).sort().values
    noise = torch.randn(NUM_PLACES, generator=generator, dtype=torch.float64)
    y = x.sin() + NOISE * noise
    return x.to(torch.get_default_dtype()), y.to(torch.get_default_dtype())


def model(x: Tensor, y: Tensor) -> None:
    """Three numbers are latent; y is one observation."""
    values = {
        name: pyro.sample(name, dist.LogNormal(x.new_full((), loc), scale))
        for name, (loc, scale) in PRIORS.items()
    }
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), covariance(x, **values)), obs=y)


def covariance(x: Tensor, length: Tensor, amplitude: Tensor, noise: Tensor) -> Tensor:
    """C, of shape (..., N, N), from x of shape (N,) and hyperparameters of shape (...)."""
    length, amplitude, noise = (v[..., None, None] for v in (length, amplitude, noise))
    kernel = (-((x[:, None] - x) ** 2) / (2 * length**2)).exp()
    return amplitude**2 * kernel + noise**2 * torch.eye(len(x), dtype=x.dtype, device=x.device)


def log_likelihood(
    x: Tensor, y: Tensor, length: Tensor, amplitude: Tensor, noise: Tensor
) -> Tensor:
    """log p(y | length, amplitude, noise), the evidence given the hyperparameters.

    Args:
        x: shape (N,).
        y: shape (N,).
        length, amplitude, noise: shape (...).

    Returns:
        Shape (...), in nats.
    """
    c = covariance(x, length, amplitude, noise)
    return dist.MultivariateNormal(torch.zeros_like(y), c).log_prob(y)


def exact(x: Tensor, y: Tensor, num_nodes: int = 31) -> dict[str, Any]:
    """Posterior moments and log evidence, by the trapezoidal rule over the three logarithms.

    Each reaches 5 sds of its prior to either side, where the integrand vanishes: the rule
    converges faster than any power of the step.

    Args:
        x: places, shape (N,).
        y: values, shape (N,).
        num_nodes: how many values of each logarithm; their cube is how many Choleskys.

    Returns:
        `log_evidence`, log p(y) in nats; `mean` and `sd` of the posterior, by site, as float64
        tensors.
    """
    x, y = x.double(), y.double()
    u = torch.linspace(-5, 5, num_nodes, dtype=x.dtype, device=x.device)
    grid = torch.cartesian_prod(u, u, u)  # standardized logarithms
    nodes = {n: (m + s * g).exp() for (n, (m, s)), g in zip(PRIORS.items(), grid.T, strict=True)}
    log_prior = (dist.Normal(0.0, 1.0).log_prob(grid) + (u[1] - u[0]).log()).sum(-1)
    log_joint = log_prior + log_likelihood(x, y, **nodes)
    log_evidence = log_joint.logsumexp(0)
    weight = (log_joint - log_evidence).exp()
    mean = {name: weight @ value for name, value in nodes.items()}
    sd = {name: (weight @ (value - mean[name]) ** 2).sqrt() for name, value in nodes.items()}
    return {"log_evidence": float(log_evidence), "mean": mean, "sd": sd}
