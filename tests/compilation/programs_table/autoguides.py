"""Every kind of autoguide that Pyro has, on one small hierarchy."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import (
    affine_autoregressive,
    affine_coupling,
    block_autoregressive,
    iterated,
    spline_coupling,
)
from pyro.infer import TraceEnum_ELBO
from pyro.infer import autoguide as auto
from pyro.poutine import block

from tests.compilation.programs_table.registry import Run, program

X = torch.tensor([0.3, -1.2, 2.8])
feasible = partial(auto.init_to_feasible)


def model(x):
    spread = pyro.sample("spread", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(0.0, spread))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


def run(guide):
    return Run(model, guide, args=(X,))


@program("captured", compiles=True)
def auto_normal():
    return run(auto.AutoNormal(model))


@program("captured")
def auto_diagonal_normal():
    return run(auto.AutoDiagonalNormal(model))


@program("captured", compiles=True)
def auto_multivariate_normal():
    return run(auto.AutoMultivariateNormal(model))


@program("captured")
def auto_low_rank_multivariate_normal():
    return run(auto.AutoLowRankMultivariateNormal(model, rank=2))


@program("captured")
def auto_iaf_normal():
    return run(auto.AutoIAFNormal(model, hidden_dim=[8], num_transforms=2))


@program("captured")
def auto_flow_of_affine_couplings():
    return run(auto.AutoNormalizingFlow(model, partial(affine_coupling, hidden_dims=[8])))


@program("eager", reason="shape")
def auto_flow_of_spline_couplings():
    """Outside of the spline's interval it selects by a mask of values."""

    spline = partial(spline_coupling, hidden_dims=[8], count_bins=4)
    return run(auto.AutoNormalizingFlow(model, partial(iterated, 2, spline)))


@program("captured")
def auto_flow_of_block_autoregressive_networks():
    return run(auto.AutoNormalizingFlow(model, block_autoregressive))


@program("captured")
def auto_flow_of_affine_autoregressive_networks():
    flow = partial(affine_autoregressive, hidden_dims=[8])
    return run(auto.AutoNormalizingFlow(model, partial(iterated, 2, flow)))


@program("captured")
def auto_delta():
    return run(auto.AutoDelta(model))


@program("captured")
def auto_laplace_approximation():
    return run(auto.AutoLaplaceApproximation(model))


@program("captured")
def auto_guide_list():
    guide = auto.AutoGuideList(model)
    guide.append(auto.AutoDelta(block(model, expose=["spread"])))
    guide.append(auto.AutoDiagonalNormal(block(model, expose=["z"])))
    return run(guide)


@program("captured")
def auto_guide_list_with_a_function():
    def spread(x):
        loc = pyro.param("loc", torch.zeros(()))
        pyro.sample("spread", dist.LogNormal(loc, 0.4))

    guide = auto.AutoGuideList(model)
    guide.append(spread)
    guide.append(auto.AutoNormal(block(model, expose=["z"])))
    return run(guide)


@program("captured")
def auto_structured():
    guide = auto.AutoStructured(
        model,
        conditionals={"spread": "normal", "z": "mvn"},
        dependencies={"z": {"spread": "linear"}},
    )
    return run(guide)


@program("captured")
def auto_gaussian():
    return run(auto.AutoGaussian(model))


@program("captured")
def auto_normal_messenger():
    return run(auto.AutoNormalMessenger(model, init_loc_fn=feasible))


@program("captured")
def auto_hierarchical_normal_messenger():
    return run(auto.AutoHierarchicalNormalMessenger(model, init_loc_fn=feasible))


@program("captured")
def auto_regressive_messenger():
    return run(auto.AutoRegressiveMessenger(model))


def mixture(x):
    locs = pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    with pyro.plate("data", 3):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
        pyro.sample("x", dist.Normal(locs[..., k], 0.7), obs=x)


def guide_of_mixture():
    guide = auto.AutoGuideList(mixture)
    guide.append(auto.AutoNormal(block(mixture, expose=["locs"])))
    guide.append(auto.AutoDiscreteParallel(block(mixture, expose=["k"])))
    return guide


@program("either")
def auto_discrete_parallel():
    return Run(mixture, guide_of_mixture(), TraceEnum_ELBO(max_plate_nesting=1), (X,))
