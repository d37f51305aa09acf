"""Radon in houses: a regression with an intercept for each county, partially pooled.

Of 919 houses in 85 counties, house i in county c_i has the log radon level y_i, measured in the
basement (x_i = 0) or on the first floor (x_i = 1):

    mu ~ Normal(0, 5),  tau ~ HalfNormal(1),  a_c ~ Normal(mu, tau),  c = 1..85,
    b ~ Normal(0, 5),  sigma ~ HalfNormal(1),  y_i ~ Normal(a_{c_i} + b x_i, sigma).

The intercepts are sampled themselves (the centered form): the data say more about most of them than
the prior does, so tau and a do not make a funnel.

Data: simulated from the model by a fixed seed, nothing is fetched. Numbers of houses and counties,
and mu, tau, b and sigma, are about those of the Minnesota houses in A. Gelman and J. Hill (2007),
Data analysis using regression and multilevel/hierarchical models, chapter 12. As there, some
counties have one house and a few have a hundred.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

NUM_HOUSES = 919
NUM_COUNTIES = 85
TRUTH = {"mu": 1.5, "tau": 0.35, "b": -0.65, "sigma": 0.75}


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Counties 0..84, int64, floors 0 or 1 and log radon levels, each of shape (919,)."""
    generator = torch.Generator().manual_seed(2007)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    popularity = normal(NUM_COUNTIES).exp()
    more = popularity.multinomial(NUM_HOUSES - NUM_COUNTIES, True, generator=generator)
    county = torch.cat([torch.arange(NUM_COUNTIES), more]).sort().values
    floor = (torch.rand(NUM_HOUSES, generator=generator, dtype=torch.float64) < 1 / 6).double()
    a = TRUTH["mu"] + TRUTH["tau"] * normal(NUM_COUNTIES)
    y = a[county] + TRUTH["b"] * floor + TRUTH["sigma"] * normal(NUM_HOUSES)
    return county, floor.to(torch.get_default_dtype()), y.to(torch.get_default_dtype())


def model(county: Tensor, floor: Tensor, y: Tensor) -> None:
    """Intercepts in the plate "county", houses in the plate "house" beside it."""
    zero, one = y.new_zeros(()), y.new_ones(())
    mu = pyro.sample("mu", dist.Normal(zero, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(one))
    b = pyro.sample("b", dist.Normal(zero, 5.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(one))
    with pyro.plate("county", NUM_COUNTIES):
        a = pyro.sample("a", dist.Normal(mu, tau))
    with pyro.plate("house", len(y)):
        pyro.sample("y", dist.Normal(a[..., county] + b * floor, sigma), obs=y)
