"""Laws 1 and 5: values against Pyro's and closed forms, and the order of the bounds."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO as PyroRenyiELBO
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_elbo_lab.objectives.analytic_kl import AnalyticKLELBO
from pyro_elbo_lab.objectives.lower_bounds import ImportanceWeightedELBO, RenyiELBO, StandardELBO
from tests.objectives.laws import exact, toys
from tests.objectives.laws.estimation import mean_loss
from tests.objectives.laws.registry import ROWS
from tests.support.tolerances import assert_mean_equals, critical_value

vectorized = pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])


def eight_schools(dtype, device):
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=dtype, device=device)
    sigma = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=dtype, device=device)
    zero = y.new_zeros(())

    def model():
        mu = pyro.sample("mu", dist.Normal(zero, zero + 5))
        tau = pyro.sample("tau", dist.HalfCauchy(zero + 5))
        with pyro.plate("school", 8):
            z = pyro.sample("z", dist.Normal(zero, zero + 1))
            theta = pyro.deterministic("theta", mu + tau * z)
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    return model


def same_seed(objective, model, guide):
    pyro.set_rng_seed(7)
    return objective.loss(model, guide)


@vectorized
@pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal])
@pytest.mark.parametrize("num_particles", [1, 5])
def test_equals_pyro_under_the_same_seed(num_particles, autoguide, vectorize, dtype, device):
    model = eight_schools(dtype, device)
    guide = autoguide(model)
    guide()
    keywords = {"vectorize_particles": vectorize, "max_plate_nesting": 1}
    pairs = [
        (StandardELBO(num_particles, **keywords), Trace_ELBO(num_particles, **keywords)),
        (
            ImportanceWeightedELBO(num_particles, local_plates=(), **keywords),
            PyroRenyiELBO(alpha=0.0, num_particles=num_particles, **keywords)
            if num_particles > 1
            else Trace_ELBO(**keywords),
        ),
    ]
    for ours, theirs in pairs:
        expected = same_seed(theirs, model, guide)
        assert same_seed(ours, model, guide) == pytest.approx(
            expected, rel=64 * torch.finfo(dtype).eps
        )


def conjugate(dtype=torch.float64):
    """z ~ N(0, 1), x | z ~ N(z, 0.5) in variance, x = 1.3; q = N(0.2, 0.6) in variance."""
    x = torch.tensor(1.3, dtype=dtype)

    def model():
        z = pyro.sample("z", dist.Normal(0 * x, 0 * x + 1))
        pyro.sample("x", dist.Normal(z, (0 * x + 0.5).sqrt()), obs=x)

    def guide():
        pyro.sample("z", dist.Normal(0 * x + 0.2, (0 * x + 0.6).sqrt()))

    return model, guide


LOG_EVIDENCE = toys.log_normal(torch.tensor(1.3, dtype=torch.float64), 0.0, math.sqrt(1.5)).item()


def conjugate_elbo():
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.6)
    prior = -0.5 * (0.2**2 + 0.6) - 0.5 * math.log(2 * math.pi)
    likelihood = -0.5 * ((1.3 - 0.2) ** 2 + 0.6) / 0.5 - 0.5 * math.log(2 * math.pi * 0.5)
    return entropy + prior + likelihood


@vectorized
@pytest.mark.parametrize("objective", [StandardELBO, AnalyticKLELBO])
def test_elbo_of_the_conjugate_model(objective, vectorize):
    model, guide = conjugate()
    pyro.set_rng_seed(0)
    loss = objective(50, vectorize_particles=vectorize)
    assert_mean_equals(-mean_loss(lambda: loss.loss(model, guide), 60), conjugate_elbo())


def test_importance_weighted_bound_of_the_conjugate_model():
    """By two-dimensional quadrature for K = 2."""
    nodes, weight = toys.normal(2, torch.zeros((), dtype=torch.float64))

    def log_weight(noise):
        z = 0.2 + math.sqrt(0.6) * noise
        x = torch.tensor(1.3, dtype=torch.float64)
        log_p = toys.log_normal(z, 0.0, 1.0) + toys.log_normal(x, z, math.sqrt(0.5))
        return log_p - toys.log_normal(z, 0.2, math.sqrt(0.6))

    expected = (weight * exact.importance(torch.stack([log_weight(n) for n in nodes]))).sum()
    model, guide = conjugate()
    pyro.set_rng_seed(0)
    loss = ImportanceWeightedELBO(2, num_outer_particles=200, vectorize_particles=True)
    assert_mean_equals(-mean_loss(lambda: loss.loss(model, guide), 100), expected)


def test_bounds_rise_with_the_particles_to_the_evidence():
    model, guide = conjugate()
    pyro.set_rng_seed(0)
    means, errors = [conjugate_elbo()], [0.0]
    for num_particles in (2, 8, 64, 512):
        loss = ImportanceWeightedELBO(num_particles, 1000, vectorize_particles=True)
        values = -mean_loss(partial(loss.loss, model, guide), 20)
        means.append(values.mean().item())
        errors.append(values.std().item() / math.sqrt(20))
    steps = np.diff([*means, LOG_EVIDENCE])
    assert (steps > 2 * np.array(errors)).all()
    assert abs(means[-1] - LOG_EVIDENCE) < 0.01  # chi^2 / (2 K), with chi^2 of about 3


LOWER_BOUNDS = [row for row in ROWS if row.bounds == "below"]


@pytest.mark.parametrize("row", LOWER_BOUNDS, ids=lambda row: row.name)
def test_two_particles_stay_below_the_evidence(row):
    """And above the ELBO, with the exception of the Renyi bound of order 2."""
    model, guide = conjugate()
    pyro.set_rng_seed(0)
    many = {"num_outer": 500} if row.averages else {}
    loss = row.build(gradient=row.gradients[0], vectorize_particles=True, **many)
    values = -mean_loss(partial(loss.loss, model, guide), 60 if row.averages else 2000)
    error = critical_value() * values.std().item() / math.sqrt(len(values))
    assert values.mean() < LOG_EVIDENCE + error
    assert (values.mean() > conjugate_elbo() - error) == (row.name != "Renyi 2")


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_renyi_bound_equals_pyros_under_the_same_seed(alpha):
    model = eight_schools(torch.float64, "cpu")
    guide = AutoNormal(model)
    guide()
    ours = RenyiELBO(alpha, 5, local_plates=(), vectorize_particles=True)
    theirs = PyroRenyiELBO(alpha, 5, vectorize_particles=True, max_plate_nesting=1)
    assert same_seed(ours, model, guide) == pytest.approx(same_seed(theirs, model, guide))
