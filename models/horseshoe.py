"""Sparse regression with the horseshoe: 20 candidates, of which three matter.

    sigma ~ HalfNormal(1),  tau ~ HalfCauchy(0.1),  lam_j ~ HalfCauchy(1),  z_j ~ Normal(0, 1),
    w_j = tau lam_j z_j,  y_i ~ Normal(x_i . w, sigma),  j = 1..20,  i = 1..60.

tau pulls all weights to 0, and the heavy tail of a lam_j lets one go. z is sampled and w follows
(the non-centered form): a weight at 0 says nothing of its scale, so tau, lam and w make a funnel.
The density of a lam falls like lam^-3 in the posterior, so it has no variance: compare w.

Given sigma, tau and lam everything is Gaussian: `given_scales`.

Data: simulated from the likelihood with `TRUTH` by a fixed seed, covariates independent Normal(0,
1). C. M. Carvalho, N. G. Polson and J. G. Scott (2010), The horseshoe estimator for sparse signals,
Biometrika 97; scale of tau about (3 of 20) sigma / sqrt(60), after J. Piironen and A. Vehtari
(2017), Electronic Journal of Statistics 11.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

NUM_OBSERVATIONS = 60
NUM_WEIGHTS = 20
TRUTH: dict[str, Any] = {"w": {0: 2.0, 1: -1.5, 2: 1.0}, "sigma": 1.0}
"""Weights that are not 0, by index, and the sd of the noise."""


def data() -> tuple[Tensor, Tensor]:
    """Covariates x, shape (60, 20), and responses y, shape (60,)."""
    generator = torch.Generator().manual_seed(2010)
    x = torch.randn(NUM_OBSERVATIONS, NUM_WEIGHTS, generator=generator, dtype=torch.float64)
    noise = torch.randn(NUM_OBSERVATIONS, generator=generator, dtype=torch.float64)
    y = x @ true_weights() + TRUTH["sigma"] * noise
    return x.to(torch.get_default_dtype()), y.to(torch.get_default_dtype())


def true_weights() -> Tensor:
    """Shape (20,), float64."""
    w = torch.zeros(NUM_WEIGHTS, dtype=torch.float64)
    for index, value in TRUTH["w"].items():
        w[index] = value
    return w


def model(x: Tensor, y: Tensor) -> None:
    """Weights in the plate "candidate", observations in the plate "observation" beside it."""
    one = y.new_ones(())
    sigma = pyro.sample("sigma", dist.HalfNormal(one))
    tau = pyro.sample("tau", dist.HalfCauchy(0.1 * one))
    with pyro.plate("candidate", x.shape[-1]):
        lam = pyro.sample("lam", dist.HalfCauchy(one))
        z = pyro.sample("z", dist.Normal(0 * one, 1.0))
        w = pyro.deterministic("w", tau * lam * z, event_dim=0)
    with pyro.plate("observation", len(y)):
        pyro.sample("y", dist.Normal(w @ x.T, sigma), obs=y)


def given_scales(
    x: Tensor, y: Tensor, sigma: Tensor, tau: Tensor, lam: Tensor
) -> tuple[Tensor, dist.MultivariateNormal]:
    """log p(y | sigma, tau, lam) in nats, and the posterior of w given these.

    With S = diag(tau^2 lam^2), y ~ Normal(0, X S X' + sigma^2 I), and w given y is
    Normal(P^-1 X'y / sigma^2, P^-1) with the precision P = S^-1 + X'X / sigma^2.

    Args:
        x: covariates, shape (N, D).
        y: responses, shape (N,).
        sigma, tau: numbers.
        lam: shape (D,).
    """
    scale = tau * lam
    scaled = x * scale
    marginal = scaled @ scaled.T + sigma**2 * torch.eye(len(y), dtype=y.dtype, device=y.device)
    log_evidence = dist.MultivariateNormal(torch.zeros_like(y), marginal).log_prob(y)
    precision = (scale**-2).diag() + x.T @ x / sigma**2
    mean = torch.linalg.solve(precision, x.T @ y / sigma**2)
    return log_evidence, dist.MultivariateNormal(mean, precision_matrix=precision)
