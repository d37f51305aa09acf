"""Bayesian linear regression with known noise: everything about its posterior is exact.

    w ~ Normal(0, I),  y_i ~ Normal(x_i . w, 0.7),  i = 1..442.

The data are those of diabetes patients: ten baseline measurements x and the progression y of the
disease a year later, all standardized (mean 0, sd 1), so no intercept is needed. Some of the
measurements are strongly correlated, and the posterior with them: a mean-field guide must
underestimate its spread. 0.7 is close to the residual sd of least squares.

With S = (I + X'X / 0.49)^-1 the posterior is Normal(S X'y / 0.49, S), and the evidence is
y ~ Normal(0, X X' + 0.49 I).

Data: B. Efron, T. Hastie, I. Johnstone and R. Tibshirani (2004), Least angle regression, Annals
of Statistics 32; as scikit-learn ships them (`load_diabetes`).
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

NOISE = 0.7


def data() -> tuple[Tensor, Tensor]:
    """Standardized measurements x, shape (442, 10), and progression y, shape (442,)."""
    from sklearn.datasets import load_diabetes

    x, y = (torch.as_tensor(a, dtype=torch.float64) for a in load_diabetes(return_X_y=True))
    x = (x - x.mean(0)) / x.std(0, correction=0)
    y = (y - y.mean()) / y.std(correction=0)
    return x.to(torch.get_default_dtype()), y.to(torch.get_default_dtype())


def model(x: Tensor, y: Tensor) -> None:
    """Weights w of shape (10,) in one site; observations in the plate "patient"."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[-1]), 1.0).to_event(1))
    # w is (D,), or (..., 1, D) where an outer plate stands to the left of "patient".
    mean = (w @ x.T).reshape(*w.shape[:-2], len(y))
    with pyro.plate("patient", len(y)):
        pyro.sample("y", dist.Normal(mean, NOISE), obs=y)


def exact_guide(x: Tensor, y: Tensor) -> None:
    """A full-rank Gaussian that starts at the exact posterior."""
    posterior = exact(x, y)
    loc = pyro.param("loc", lambda: posterior["mean"]["w"].to(x.dtype))
    scale_tril = pyro.param(
        "scale_tril",
        lambda: torch.linalg.cholesky(posterior["covariance"]["w"]).to(x.dtype),
        constraint=constraints.lower_cholesky,
    )
    pyro.sample("w", dist.MultivariateNormal(loc, scale_tril=scale_tril))


guides = {"exact": lambda: exact_guide}


def exact(x: Tensor, y: Tensor) -> dict[str, Any]:
    """The posterior and the log evidence, in closed form.

    Args:
        x: covariates, shape (N, D).
        y: responses, shape (N,).

    Returns:
        `log_evidence`, log p(y | x) in nats; `mean`, `sd` and `covariance` of the posterior, by
        site, as float64 tensors.
    """
    x, y = x.double(), y.double()
    precision = torch.eye(x.shape[1], dtype=x.dtype, device=x.device) + x.T @ x / NOISE**2
    factor = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve((x.T @ y / NOISE**2)[:, None], factor)[:, 0]
    covariance = torch.cholesky_inverse(factor)
    # log p(y) = log p(y | w) + log p(w) - log p(w | y), at the posterior mean w
    log_evidence = (
        dist.Normal(x @ mean, NOISE).log_prob(y).sum()
        - mean @ mean / 2
        - factor.diagonal().log().sum()
    )
    return {
        "log_evidence": float(log_evidence),
        "mean": {"w": mean},
        "sd": {"w": covariance.diagonal().sqrt()},
        "covariance": {"w": covariance},
    }
