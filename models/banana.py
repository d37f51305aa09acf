"""A banana: a Gaussian bent along a parabola.

    x ~ Normal(0, 10),  y ~ Normal(b (100 - x^2), 1),  b = 0.03.

It is what becomes of two independent Normals when y moves by b (100 - x^2), so its normalizing
constant and its moments are known. x and y are uncorrelated, and strongly dependent: no Gaussian,
of full rank or not, follows the ridge. There are no observations: the prior is the posterior, and
the log evidence is 0. `guides["conditional"]` follows the ridge, with a bend to learn.

Data: b, which also says in which dtype and on which device. Form and values are those of H. Haario,
E. Saksman and J. Tamminen (2001), An adaptive Metropolis algorithm, Bernoulli 7, in two dimensions;
b = 0.03 is their moderately twisted target. Rosenbrock's function is a ridge of the same kind.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

SD = 10.0


def data() -> tuple[Tensor]:
    """The bend b, a number."""
    return (torch.tensor(0.03),)


def model(b: Tensor) -> None:
    """y is drawn around the ridge."""
    x = pyro.sample("x", dist.Normal(torch.zeros_like(b), SD))
    pyro.sample("y", dist.Normal(b * (SD**2 - x**2), 1.0))


def conditional_guide(b: Tensor) -> None:
    """Two Normals, one of them around a parabola; at its optimum it is the posterior."""
    one = torch.ones_like(b)
    positive = constraints.positive
    scale = pyro.param("x_scale", lambda: one, constraint=positive)
    x = pyro.sample("x", dist.Normal(torch.zeros_like(b), scale))
    level = pyro.param("level", lambda: 0 * one)
    bend = pyro.param("bend", lambda: 0 * one)
    sd = pyro.param("y_scale", lambda: one, constraint=positive)
    pyro.sample("y", dist.Normal(level - bend * x**2, sd))


guides = {"conditional": lambda: conditional_guide}


def exact(b: Tensor) -> dict[str, Any]:
    """The posterior, which is the prior: Var(y) = 1 + b^2 Var(x^2) = 1 + 2 b^2 sd(x)^4.

    Args:
        b: the bend.

    Returns:
        `log_evidence`, 0; `mean` and `sd`, by site, as float64 tensors. x and y are uncorrelated.
    """
    b = b.double()
    zero = torch.zeros_like(b)
    return {
        "log_evidence": 0.0,
        "mean": {"x": zero, "y": zero},
        "sd": {"x": zero + SD, "y": (1 + 2 * b**2 * SD**4).sqrt()},
    }
