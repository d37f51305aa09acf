"""Autoregression of order K: a series that leans on its own past.

    a ~ Normal(0, 1),  b_k ~ Normal(0, 1),  k = 1..K,  sigma ~ HalfNormal(1),
    y_t ~ Normal(a + sum_k b_k y_{t-k}, sigma),  t = K+1..T,  K = 2,  T = 150,

given the first K values. Given the past of each value this is a linear regression, and the values
are independent: one plate, no loop over time. b_1 and b_2 are correlated, as successive values of
the series are.

Given sigma everything is Gaussian, which leaves one integral over sigma: `exact`.

Data: simulated from the model with `TRUTH` by a fixed seed. Its roots are complex: the series
swings with a period of about nine steps, and forgets where it was in about ten.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

NUM_TIMES = 150
TRUTH: dict[str, Any] = {"a": 0.4, "b": [1.2, -0.6], "sigma": 0.5}
"""Order K is the length of b."""


def data() -> tuple[Tensor, Tensor]:
    """The K values before each, the latest first, shape (148, 2); the values, shape (148,)."""
    past, y = lagged(series(), len(TRUTH["b"]))
    return past.to(torch.get_default_dtype()), y.to(torch.get_default_dtype())


def series() -> Tensor:
    """The simulated series, shape (150,), float64, after 100 steps that are thrown away."""
    generator = torch.Generator().manual_seed(1927)
    noise = torch.randn(NUM_TIMES + 100, generator=generator, dtype=torch.float64)
    y = [0.0] * len(TRUTH["b"])
    for e in noise.tolist():
        past = reversed(y[-len(TRUTH["b"]) :])
        mean = TRUTH["a"] + sum(b * value for b, value in zip(TRUTH["b"], past, strict=True))
        y.append(mean + TRUTH["sigma"] * e)
    return torch.tensor(y[-NUM_TIMES:], dtype=torch.float64)


def lagged(y: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """From a series of shape (T,): the past of each value, (T - K, K), and the values, (T - K,)."""
    past = [y[order - k : len(y) - k] for k in range(1, order + 1)]
    return torch.stack(past, -1), y[order:]


def model(past: Tensor, y: Tensor) -> None:
    """Coefficients b of shape (K,) in one site; values in the plate "time"."""
    zero, one = y.new_zeros(()), y.new_ones(())
    a = pyro.sample("a", dist.Normal(zero, 1.0))
    b = pyro.sample("b", dist.Normal(y.new_zeros(past.shape[-1]), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(one))
    # b is (K,), or (..., 1, K) where an outer plate stands to the left of "time".
    mean = a + (b @ past.T).reshape(*b.shape[:-2], len(y))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def exact(past: Tensor, y: Tensor, num_nodes: int = 2001) -> dict[str, Any]:
    """Posterior moments and log evidence, by the trapezoidal rule over log sigma.

    With c = (a, b), rows X_t = (1, past_t), N of them, the eigenvalues l_j of X'X, its eigenvectors
    Q, and p_j = 1 + l_j / sigma^2,

        Q'c | sigma, y ~ Normal((Q'X'y)_j / (sigma^2 p_j), p_j^-1/2), independent,
        log p(y | sigma) = -N log(2 pi sigma^2) / 2 - y'y / (2 sigma^2)
                           + sum_j (Q'X'y)_j^2 / (2 sigma^4 p_j) - log(p_j) / 2.

    Args:
        past: the K values before each value, shape (N, K).
        y: values, shape (N,).
        num_nodes: how many values of log sigma, from -7 to 3.

    Returns:
        `log_evidence`, log p(y) in nats given the first K values; `mean` and `sd` of the
        posterior, by site, as float64 tensors.
    """
    y = y.double()
    x = torch.cat([torch.ones_like(y)[:, None], past.double()], 1)
    eigenvalues, q = torch.linalg.eigh(x.T @ x)
    projected = q.T @ x.T @ y
    log_sigma = torch.linspace(-7, 3, num_nodes, dtype=torch.float64, device=y.device)
    sigma = log_sigma.exp()[:, None]  # (num_nodes, 1)
    precision = 1 + eigenvalues / sigma**2  # (num_nodes, 1 + K)
    rotated = projected / sigma**2 / precision
    log_joint = (
        -len(y) * (log_sigma + math.log(2 * math.pi) / 2)
        - y @ y / (2 * sigma[:, 0] ** 2)
        + (rotated**2 * precision - precision.log()).sum(-1) / 2
        + dist.HalfNormal(torch.ones_like(sigma[:, 0])).log_prob(sigma[:, 0])
        + log_sigma
        + math.log(10 / (num_nodes - 1))
    )
    log_evidence = log_joint.logsumexp(0)
    weight = (log_joint - log_evidence).exp()[:, None]
    c = torch.cat([rotated @ q.T, sigma], 1)  # means given sigma, and sigma itself
    variance = torch.cat([(1 / precision) @ (q.T**2), torch.zeros_like(sigma)], 1)
    mean = (weight * c).sum(0)
    sd = (weight * (variance + (c - mean) ** 2)).sum(0).sqrt()
    return {
        "log_evidence": float(log_evidence),
        "mean": {"a": mean[0], "b": mean[1:-1], "sigma": mean[-1]},
        "sd": {"a": sd[0], "b": sd[1:-1], "sigma": sd[-1]},
    }
