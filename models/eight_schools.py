"""Eight schools: effects of coaching on test scores, estimated in eight parallel experiments.

School j reports an effect y_j with a known standard error sigma_j. With J = 8,

    mu ~ Normal(0, 5),  tau ~ HalfCauchy(5),
    theta_j ~ Normal(mu, tau),  y_j ~ Normal(theta_j, sigma_j).

`model`, which the command line uses, is the non-centered form: z_j ~ Normal(0, 1) is sampled and
theta_j = mu + tau z_j follows. `model_centered` samples theta_j itself; its posterior is the same
and a funnel, hard for NUTS and for a guide.

`exact` knows the posterior moments and the evidence: given tau everything is Gaussian, which
leaves one integral over tau. `guides["conditional"]` is exact given tau.

Data: D. B. Rubin (1981), Estimation in parallel randomized experiments, Journal of Educational
Statistics 6. Model and priors as in posteriordb, `eight_schools_noncentered` and
`eight_schools_centered`.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


def data() -> tuple[Tensor, Tensor]:
    """Estimated effects y and their standard errors sigma, in points of the test, each (8,)."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    return y, sigma


def model(y: Tensor, sigma: Tensor) -> None:
    """The non-centered form."""
    mu, tau = _mu_and_tau(y)
    with pyro.plate("school", len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
        theta = pyro.deterministic("theta", mu + tau * z, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def model_centered(y: Tensor, sigma: Tensor) -> None:
    """The centered form."""
    mu, tau = _mu_and_tau(y)
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def _mu_and_tau(y: Tensor) -> tuple[Tensor, Tensor]:
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_full((), 5.0)))
    return mu, tau


def conditional_guide(y: Tensor, sigma: Tensor) -> None:
    """For `model`: a log-normal tau, and mu and z from their exact conditionals."""
    loc = pyro.param("tau_loc", y.new_full((), 1.0))
    scale = pyro.param("tau_scale", y.new_full((), 1.0), constraint=constraints.positive)
    tau = pyro.sample("tau", dist.LogNormal(loc, scale))
    variance = sigma**2 + tau**2  # (..., 8), of y_j given mu and tau
    precision = 1 / 25 + (1 / variance).sum(-1, keepdim=tau.dim() > 0)
    mean = (y / variance).sum(-1, keepdim=tau.dim() > 0) / precision
    mu = pyro.sample("mu", dist.Normal(mean, precision**-0.5))
    with pyro.plate("school", len(y)):
        pyro.sample("z", dist.Normal(tau * (y - mu) / variance, sigma / variance.sqrt()))


guides = {"conditional": lambda: conditional_guide}


def exact(y: Tensor, sigma: Tensor, num_nodes: int = 4001) -> dict[str, Any]:
    """Posterior moments and log evidence, by the trapezoidal rule over log tau.

    With V_j = sigma_j^2 + tau^2 and P = 1/25 + sum_j 1/V_j,

        mu | tau, y ~ Normal(m, P^-1/2),  m = sum_j (y_j / V_j) / P,
        theta_j | mu, tau, y ~ Normal((tau^2 y_j + sigma_j^2 mu) / V_j, tau sigma_j / V_j^1/2),
        log p(y | tau) = sum_j log Normal(y_j; 0, V_j^1/2) - log(25 P) / 2 + m^2 P / 2.

    The integrand is smooth in log tau and vanishes at both ends, where the rule converges faster
    than any power of the step.

    Args:
        y: estimated effects, shape (J,).
        sigma: their standard errors, shape (J,).
        num_nodes: how many values of log tau, from -25 to 15.

    Returns:
        `log_evidence`, log p(y) in nats; `mean` and `sd`, the posterior's, by site, as float64
        tensors.
    """
    y, sigma = y.double()[:, None], sigma.double()[:, None]
    log_tau = torch.linspace(-25, 15, num_nodes, dtype=torch.float64, device=y.device)
    tau = log_tau.exp()  # (num_nodes,)
    variance = sigma**2 + tau**2  # (J, num_nodes)
    precision = 1 / 25 + (1 / variance).sum(0)
    m = (y / variance).sum(0) / precision
    log_joint = (
        dist.Normal(0, variance.sqrt()).log_prob(y).sum(0)
        - (25 * precision).log() / 2
        + m**2 * precision / 2
        + dist.HalfCauchy(torch.full_like(tau, 5)).log_prob(tau)
        + log_tau
        + math.log(40 / (num_nodes - 1))
    )
    log_evidence = log_joint.logsumexp(0)
    weight = (log_joint - log_evidence).exp()
    share = sigma**2 / variance  # of mu in theta_j
    given_tau = {  # means and variances
        "mu": (m, 1 / precision),
        "tau": (tau, torch.zeros_like(tau)),
        "theta": (
            (1 - share) * y + share * m,
            tau**2 * share + share**2 / precision,
        ),
        "z": (
            tau * (y - m) / variance,
            share + (tau / variance) ** 2 / precision,
        ),
    }
    mean = {name: (weight * e).sum(-1) for name, (e, _) in given_tau.items()}
    sd = {
        name: (weight * (v + (e - mean[name][..., None]) ** 2)).sum(-1).sqrt()
        for name, (e, v) in given_tau.items()
    }
    return {"log_evidence": float(log_evidence), "mean": mean, "sd": sd}
