"""Robust regression: errors with Student's t, whose tails are learnt too.

    b0 ~ Normal(0, 1),  b ~ Normal(0, I),  sigma ~ HalfNormal(1),  nu ~ Gamma(2, 0.1),
    y_i ~ StudentT(nu, b0 + x_i . b, sigma),  i = 1..21.

The covariates and y are standardized. Four of the 21 days (1, 3, 4 and 21) are far from what the
other seventeen say; with a small nu they cost little and hardly move the regression, with a large
nu the errors are Gaussian and they do. 21 days cannot tell which: 90 % of the posterior of nu is
spread from 4 to 46.

Data: loss of ammonia on 21 days in a plant that oxidises it to nitric acid, by flow of air,
temperature of the cooling water and concentration of the acid; K. A. Brownlee (1965), Statistical
theory and methodology in science and engineering, page 454. C. Daniel and F. S. Wood (1971),
Fitting equations to data, chapter 5, point at the four days, and K. L. Lange, R. J. A. Little and
J. M. G. Taylor (1989), Robust statistical modeling using the t distribution, Journal of the
American Statistical Association 84, fit this model to them. Prior of nu: M. A. Juarez and M. F. J.
Steel (2010), Journal of Business and Economic Statistics 28.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

OUTLIERS = [0, 2, 3, 20]
"""The four days, counted from 0."""


def measurements() -> tuple[Tensor, Tensor]:
    """Flow, temperature and acid as measured, shape (21, 3), and the loss, shape (21,), float64."""
    flow = [80, 80, 75, 62, 62, 62, 62, 62, 58, 58, 58, 58, 58, 58, 50, 50, 50, 50, 50, 56, 70]
    water = [27, 27, 25, 24, 22, 23, 24, 24, 23, 18, 18, 17, 18, 19, 18, 18, 19, 19, 20, 20, 20]
    acid = [89, 88, 90, 87, 87, 87, 93, 93, 87, 80, 89, 88, 82, 93, 89, 86, 72, 79, 80, 82, 91]
    loss = [42, 37, 37, 28, 18, 18, 19, 20, 15, 14, 14, 13, 11, 12, 8, 7, 8, 8, 9, 15, 15]
    x = torch.tensor([flow, water, acid], dtype=torch.float64).T.contiguous()
    return x, torch.tensor(loss, dtype=torch.float64)


def data() -> tuple[Tensor, Tensor]:
    """Standardized covariates x, shape (21, 3), and standardized loss y, shape (21,)."""
    x, y = measurements()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    y = (y - y.mean()) / y.std(correction=0)
    return x.to(torch.get_default_dtype()), y.to(torch.get_default_dtype())


def model(x: Tensor, y: Tensor) -> None:
    """Weights b of shape (3,) in one site; observations in the plate "day"."""
    zero, one = x.new_zeros(()), x.new_ones(())
    b0 = pyro.sample("b0", dist.Normal(zero, 1.0))
    b = pyro.sample("b", dist.Normal(x.new_zeros(x.shape[-1]), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(one))
    nu = pyro.sample("nu", dist.Gamma(2 * one, 0.1))
    # b is (D,), or (..., 1, D) where an outer plate stands to the left of "day".
    mean = b0 + (b @ x.T).reshape(*b.shape[:-2], len(y))
    with pyro.plate("day", len(y)):
        pyro.sample("y", dist.StudentT(nu, mean, sigma), obs=y)
