"""Laws 1, 3 and 5: values against Pyro's and closed forms, the landing, the order of the bounds."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_elbo_lab.analytic_kl import AnalyticKLELBO
from pyro_elbo_lab.objectives import ImportanceWeightedELBO, StandardELBO
from tests.laws import toys
from tests.laws.estimation import mean_loss, values_and_gradients
from tests.tolerances import assert_mean_equals

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
            RenyiELBO(alpha=0.0, num_particles=num_particles, **keywords)
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
    nodes, weight = toys.normal(2, 60, torch.zeros((), dtype=torch.float64))

    def log_weight(noise):
        z = 0.2 + math.sqrt(0.6) * noise
        x = torch.tensor(1.3, dtype=torch.float64)
        log_p = toys.log_normal(z, 0.0, 1.0) + toys.log_normal(x, z, math.sqrt(0.5))
        return log_p - toys.log_normal(z, 0.2, math.sqrt(0.6))

    expected = (weight * toys.log_mean_exp([log_weight(n) for n in nodes])).sum()
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


def posterior_guide(num_data):
    """The exact posterior q(g) q(z_i | g) of `toys.hierarchical`, over learnable parameters."""
    x = torch.linspace(-1.0, 2.0, num_data, dtype=torch.float64)
    marginal = 1.0 + 0.49
    precision = 1.0 + num_data / marginal
    global_loc = (0.3 + x.sum() / marginal) / precision
    local_precision = 1.0 + 1.0 / 0.49
    return {
        "global_loc": global_loc,
        "global_log_scale": -0.5 * torch.tensor(precision, dtype=torch.float64).log(),
        "local_loc": x / 0.49 / local_precision,
        "local_slope": torch.tensor(1.0 / local_precision, dtype=torch.float64),
        "local_log_scale": -0.5 * torch.tensor(local_precision, dtype=torch.float64).log(),
    }


@vectorized
@pytest.mark.parametrize(
    "objective",
    [
        lambda **kw: StandardELBO(3, "doubly_reparameterized", **kw),
        lambda **kw: ImportanceWeightedELBO(4, 2, "doubly_reparameterized", **kw),
        lambda **kw: ImportanceWeightedELBO(4, 2, "doubly_reparameterized", (), **kw),
        lambda **kw: StandardELBO(3, "auto", **kw),
        lambda **kw: ImportanceWeightedELBO(4, 2, "score", (), **kw),
    ],
    ids=["elbo", "cells", "joint", "elbo-auto", "joint-score"],
)
def test_guide_gradient_vanishes_at_the_posterior_for_every_draw(objective, vectorize):
    toy = toys.hierarchical(num_data=3)
    with torch.no_grad():
        for name, optimum in posterior_guide(3).items():
            toy.parameters[name].copy_(optimum)
    _, gradients = values_and_gradients(objective(vectorize_particles=vectorize), toy, 5)
    assert next(iter(toy.parameters)) == "theta"
    guide_gradients = gradients[:, 1:]
    torch.testing.assert_close(
        guide_gradients, torch.zeros_like(guide_gradients), atol=1e-12, rtol=0
    )
    assert gradients[:, 0].abs().min() > 1e-3  # the model's own parameter still learns


@vectorized
@pytest.mark.parametrize("build", [StandardELBO, ImportanceWeightedELBO])
def test_local_gradients_vanish_at_the_posterior_under_subsampling(build, vectorize):
    """The minibatch leaves noise in the global ones."""
    toy = toys.hierarchical(num_data=5, subsample_size=2)
    with torch.no_grad():
        for name, optimum in posterior_guide(5).items():
            toy.parameters[name].copy_(optimum)
    objective = build(4, gradient="doubly_reparameterized", vectorize_particles=vectorize)
    _, gradients = values_and_gradients(objective, toy, 5)
    local = gradients[:, 3:]  # after theta and the two of the global latent
    torch.testing.assert_close(local, torch.zeros_like(local), atol=1e-12, rtol=0)
    assert gradients[:, 1].abs().max() > 1e-3


def test_pathwise_gradient_does_not_vanish_at_the_posterior():
    toy = toys.hierarchical(num_data=3)
    with torch.no_grad():
        for name, optimum in posterior_guide(3).items():
            toy.parameters[name].copy_(optimum)
    _, gradients = values_and_gradients(StandardELBO(3, "pathwise"), toy, 5)
    assert gradients[:, 1:].abs().max() > 0.1
