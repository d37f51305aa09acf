"""Neal's funnel: a scale and what it scales, with nothing observed.

    v ~ Normal(0, 3),  x_i ~ Normal(0, exp(v / 2)),  i = 1..9.

For v = -6 the x_i are 400 times as narrow as for v = 6: no step size of NUTS and no Gaussian guide
fits both ends. There are no observations, so the prior is the posterior, every marginal is known
and the log evidence is 0: v is Normal, and x_i a mixture of Normals over v, with the variance
E[exp(v)] = exp(9 / 2).

`model_noncentered` is the same distribution in coordinates without a funnel: z_i ~ Normal(0, 1) and
x_i = exp(v / 2) z_i. `guides["conditional"]` draws the x_i from their exact conditional, so that
the only approximation is that of v, which is Normal and can be met exactly.

Data: the sd of v, which also says in which dtype and on which device. From R. M. Neal (2003), Slice
sampling, Annals of Statistics 31, section 8.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

NUM_SCALED = 9


def data() -> tuple[Tensor]:
    """The sd of v, a number."""
    return (torch.tensor(3.0),)


def model(scale: Tensor) -> None:
    """The centered form, a funnel."""
    v = pyro.sample("v", dist.Normal(torch.zeros_like(scale), scale))
    with pyro.plate("scaled", NUM_SCALED):
        pyro.sample("x", dist.Normal(torch.zeros_like(scale), (v / 2).exp()))


def model_noncentered(scale: Tensor) -> None:
    """The non-centered form, a product of Normals."""
    v = pyro.sample("v", dist.Normal(torch.zeros_like(scale), scale))
    with pyro.plate("scaled", NUM_SCALED):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(scale), 1.0))
        pyro.deterministic("x", (v / 2).exp() * z, event_dim=0)


def conditional_guide(scale: Tensor) -> None:
    """For `model`: a Normal v, and x from its exact conditional."""
    loc = pyro.param("v_loc", lambda: torch.zeros_like(scale))
    sd = pyro.param("v_scale", lambda: torch.ones_like(scale), constraint=constraints.positive)
    v = pyro.sample("v", dist.Normal(loc, sd))
    with pyro.plate("scaled", NUM_SCALED):
        pyro.sample("x", dist.Normal(torch.zeros_like(scale), (v / 2).exp()))


guides = {"conditional": lambda: conditional_guide}


def exact(scale: Tensor) -> dict[str, Any]:
    """The posterior, which is the prior.

    Args:
        scale: the sd of v.

    Returns:
        `log_evidence`, 0; `mean` and `sd`, by site, as float64 tensors.
    """
    s = scale.double()
    return {
        "log_evidence": 0.0,
        "mean": {"v": torch.zeros_like(s), "x": s.new_zeros(NUM_SCALED)},
        "sd": {"v": s, "x": s.new_full((NUM_SCALED,), math.exp(float(s) ** 2 / 4))},
    }
