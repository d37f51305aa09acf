"""Objectives: ours of every family, and Pyro's."""

from typing import Any

import pyro
import pyro.contrib.gp.kernels as kernels
import pyro.distributions as dist
import torch
from pyro import infer
from pyro.infer.autoguide import AutoNormal

from pyro_elbo_lab import (
    AnalyticKLELBO,
    AnnealedELBO,
    ChiUpperBound,
    CombinedImportanceWeighted,
    ForwardKL,
    ImportanceWeightedELBO,
    JackknifeELBO,
    PartiallyImportanceWeighted,
    RenyiELBO,
    ReweightedWakeSleep,
    StandardELBO,
    TailAdaptive,
    ThermodynamicELBO,
    linear_annealing,
)
from tests.compilation.programs_table.latents import X, positive
from tests.compilation.programs_table.registry import Run, program


def model(x):
    theta = pyro.param("theta", torch.tensor(0.3))
    g = pyro.sample("g", dist.Normal(theta, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(g, 1.0))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


def guide(x):
    g = pyro.sample("g", dist.Normal(pyro.param("g_loc", torch.zeros(())), positive("g_scale")))
    loc, slope = pyro.param("loc", torch.zeros(4)), pyro.param("slope", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc + slope * g, positive("scale", 0.7)))


def run(objective):
    return Run(model, guide, objective, (X,))


VECTORIZED: dict[str, Any] = {"vectorize_particles": True}


@program("captured")
def elbo_of_particles_one_by_one():
    return run(StandardELBO(3))


@program("captured")
def elbo_doubly_reparameterized():
    return run(StandardELBO(3, "doubly_reparameterized", **VECTORIZED))


@program("captured")
def elbo_by_score():
    return run(StandardELBO(3, "score", **VECTORIZED))


@program("captured", compiles=True)
def importance_weighted_cells():
    return run(ImportanceWeightedELBO(4, 2, **VECTORIZED))


@program("captured")
def importance_weighted_jointly():
    return run(ImportanceWeightedELBO(4, local_plates=(), **VECTORIZED))


@program("captured")
def renyi():
    return run(RenyiELBO(0.5, 4, **VECTORIZED))


@program("captured")
def thermodynamic():
    return run(ThermodynamicELBO(4, **VECTORIZED))


@program("captured")
def jackknife():
    return run(JackknifeELBO(4, **VECTORIZED))


@program("captured")
def combined_importance_weighted():
    return run(CombinedImportanceWeighted(0.5, 4, **VECTORIZED))


@program("captured")
def partially_importance_weighted():
    return run(PartiallyImportanceWeighted(4, 2, **VECTORIZED))


@program("captured")
def analytic_kl():
    return run(AnalyticKLELBO(2, **VECTORIZED))


@program("captured")
def chi_upper_bound():
    return run(ChiUpperBound(num_particles=4, **VECTORIZED))


@program("captured")
def tail_adaptive():
    return run(TailAdaptive(4, **VECTORIZED))


@program("captured")
def reweighted_wake_sleep():
    return run(ReweightedWakeSleep(4, **VECTORIZED))


@program("captured")
def reweighted_wake_sleep_with_dreams():
    def amortized(x, observations=None):
        x = x if observations is None else observations["x"]
        g = pyro.sample("g", dist.Normal(pyro.param("g_loc", torch.zeros(())) * x.mean(), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.ones(())) * x + g, 1.0))

    return Run(model, amortized, ReweightedWakeSleep(4, insomnia=0.5), (X,))


@program("captured")
def forward_kl():
    return run(ForwardKL(4, **VECTORIZED))


@program("captured")
def forward_kl_of_a_reference():
    draws = torch.linspace(-1.0, 1.0, 50)
    return run(ForwardKL(4, {"g": draws, "z": draws[:, None] + X}, **VECTORIZED))


@program("captured")
def annealed_paths():
    return run(AnnealedELBO(2, 3))


@program("captured")
def annealed_kl_terms():
    return run(StandardELBO(kl_weight=linear_annealing(10)))


@program("captured")
def half_of_the_kl_terms():
    return run(StandardELBO(kl_weight=0.5))


@program("captured")
def sobol_points():
    return run(StandardELBO(8, sampler="sobol", **VECTORIZED))


@program("captured")
def trace_elbo_of_pyro():
    return run(infer.Trace_ELBO(num_particles=2))


@program("captured")
def trace_elbo_of_pyro_vectorized():
    return run(infer.Trace_ELBO(num_particles=4, **VECTORIZED))


@program("captured")
def trace_mean_field_elbo_of_pyro():
    return run(infer.TraceMeanField_ELBO())


@program("either")
def trace_graph_elbo_of_pyro():
    return run(infer.TraceGraph_ELBO())


@program("either")
def renyi_elbo_of_pyro():
    return run(infer.RenyiELBO(0.5, num_particles=3))


@program("either")
def trace_tail_adaptive_elbo_of_pyro():
    return run(infer.TraceTailAdaptive_ELBO(num_particles=3, **VECTORIZED))


@program("either")
def trace_enum_elbo_of_pyro():
    @infer.config_enumerate
    def mixture(x):
        locs = pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("x", dist.Normal(locs[..., k], 0.7), obs=x)

    hidden = AutoNormal(pyro.poutine.block(mixture, hide=["k"]))
    return Run(mixture, hidden, infer.TraceEnum_ELBO(max_plate_nesting=1), (X,))


@program("either")
def reweighted_wake_sleep_of_pyro():
    """It has no differentiable loss, only gradients of two losses."""
    return run(infer.ReweightedWakeSleep(num_particles=3, **VECTORIZED))


@program("either")
def mmd_of_pyro():
    def scalar(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(), 1.0).expand([4]).to_event(1), obs=x)

    def points(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.ones(2)), 1.0).to_event(1))

    kernel = {"z": kernels.RBF(2), "x": kernels.RBF(4)}
    return Run(scalar, points, infer.Trace_MMD(kernel, num_particles=3, **VECTORIZED), (X,))


@program("either")
def decaying_average_baseline():
    """A buffer of the guide's that Pyro updates by `backward` of a second loss."""

    def scored(x):
        p = pyro.param("p", torch.tensor(0.4))
        infer_dict = {"baseline": {"use_decaying_avg_baseline": True}}
        pyro.sample("b", dist.Bernoulli(p.sigmoid()), infer=infer_dict)

    def coin(x):
        b = pyro.sample("b", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(b, 1.0).expand([4]).to_event(1), obs=x)

    return Run(coin, scored, infer.TraceGraph_ELBO(), (X,))
