"""Local plates on a linear-Gaussian model with one global and 100 local latents.

g ~ N(0, 1), z_i ~ N(g, 1), x_i ~ N(z_i, 1), whose log p(x) is that of a multivariate normal. The
guide has the right global factor and local factors that are wrong in location and scale.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO

from pyro_elbo_lab.objectives.lower_bounds import ImportanceWeightedELBO
from tests.objectives.laws.estimation import mean_loss
from tests.support.tolerances import assert_mean_equals, critical_value

N = 100
X = torch.linspace(-2.0, 3.0, N, dtype=torch.float64)
ONE = X.new_ones(())


def log_evidence():
    covariance = 2 * torch.eye(N, dtype=torch.float64) + 1
    return torch.distributions.MultivariateNormal(0 * X, covariance).log_prob(X).item()


def model(subsample_size=None):
    g = pyro.sample("g", dist.Normal(0 * ONE, ONE))
    with pyro.plate("data", N, subsample_size=subsample_size) as index:
        z = pyro.sample("z", dist.Normal(g, ONE))
        pyro.sample("x", dist.Normal(z, ONE), obs=X[index])


def guide(subsample_size=None):
    precision = 1 + N / 2
    g = pyro.sample("g", dist.Normal(X.sum() / 2 / precision, ONE / math.sqrt(precision)))
    with pyro.plate("data", N, subsample_size=subsample_size) as index:
        pyro.sample("z", dist.Normal((g + X[index]) / 2 + 0.3, 0.9 * ONE))


def losses(objective, num_evaluations, subsample_size=None):
    pyro.set_rng_seed(0)
    return mean_loss(lambda: objective.loss(model, guide, subsample_size), num_evaluations)


def importance_weighted(num_particles, **keywords):
    return ImportanceWeightedELBO(num_particles, vectorize_particles=True, **keywords)


def test_bound_rises_to_the_evidence():
    values = {k: -losses(importance_weighted(k), 400) for k in (1, 2, 10, 100)}
    means = [v.mean().item() for v in values.values()]
    errors = [v.std().item() / math.sqrt(len(v)) for v in values.values()]
    z = critical_value(len(means))
    assert means == sorted(means)
    assert means[1] - means[0] > z * math.hypot(errors[0], errors[1])
    assert log_evidence() - 0.5 < means[-1] < log_evidence() + z * errors[-1]


@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])
def test_subsampling_keeps_the_expectation(vectorize):
    num_particles = 100 if vectorize else 5
    full = -losses(importance_weighted(num_particles), 400)
    objective = ImportanceWeightedELBO(num_particles, vectorize_particles=vectorize)
    small = -losses(objective, 6000 if vectorize else 1500, subsample_size=10)
    difference = small.mean() - full.mean()
    error = math.hypot(small.std() / math.sqrt(len(small)), full.std() / math.sqrt(len(full)))
    assert abs(difference) < critical_value() * error


def test_pyros_bound_is_nats_away_and_exceeds_the_evidence_when_subsampled():
    """Why cells exist: one joint weight collapses, and a scale inside the logarithm is no bound."""
    renyi = RenyiELBO(alpha=0.0, num_particles=100, vectorize_particles=True, max_plate_nesting=1)
    assert -losses(renyi, 50).mean() < log_evidence() - 3
    renyi = RenyiELBO(alpha=0.0, num_particles=100, max_plate_nesting=1)
    assert -losses(renyi, 20, subsample_size=10).mean() > log_evidence() + 3


def test_joint_weights_equal_pyros():
    joint = importance_weighted(100, local_plates=())
    renyi = RenyiELBO(alpha=0.0, num_particles=100, vectorize_particles=True, max_plate_nesting=1)
    torch.testing.assert_close(losses(joint, 5), losses(renyi, 5))


def test_subsample_without_cells_is_refused_unless_asked_for():
    def global_guide(subsample_size=None):
        pyro.sample("g", dist.Normal(0 * ONE, ONE))

    def global_model(subsample_size=None):
        g = pyro.sample("g", dist.Normal(0 * ONE, ONE))
        with pyro.plate("data", N, subsample_size=subsample_size) as index:
            pyro.sample("x", dist.Normal(g, ONE), obs=X[index])

    with pytest.raises(ValueError, match="Plate 'data' is subsampled at site 'x'"):
        importance_weighted(5).loss(global_model, global_guide, 10)
    with pytest.warns(UserWarning, match="bounds nothing"):
        importance_weighted(5, local_plates=()).loss(global_model, global_guide, 10)
    assert math.isfinite(importance_weighted(5).loss(global_model, global_guide))


def test_mean_over_outer_particles_has_the_same_expectation():
    one = -losses(importance_weighted(5), 1500)
    many = -losses(importance_weighted(5, num_outer_particles=10), 150)
    assert_mean_equals(many - one.mean(), 0.0)
    assert many.std() < 0.5 * one.std()
