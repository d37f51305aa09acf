"""Annealed paths on models whose evidence is known."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.optim import Adam

from pyro_elbo_lab.objectives.annealed import AnnealedELBO
from pyro_elbo_lab.objectives.lower_bounds import StandardELBO
from tests.objectives.laws import toys
from tests.objectives.laws.estimation import mean_loss
from tests.support.tolerances import assert_mean_equals, critical_value

X = torch.tensor([0.8, -1.1, 2.0], dtype=torch.float64)
ONE = X.new_ones(())
LOG_EVIDENCE = (
    torch.distributions.MultivariateNormal(0 * X, 1.49 * torch.eye(3, dtype=X.dtype) + 1.0)
    .log_prob(X)
    .item()
)


def model():
    """One global and three local latents, all Gaussian."""
    g = pyro.sample("g", dist.Normal(0 * ONE, ONE))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(g, ONE))
        pyro.sample("x", dist.Normal(z, 0.7), obs=X)


def guide():
    loc = pyro.param("loc", 0.3 * ONE)
    pyro.sample("g", dist.Normal(loc, 0.8 * ONE))
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Normal(0.4 * X, 0.9 * ONE))


def lengthen(*latents):
    """Steps that matter: ten times as long as they are at first."""
    for name in latents:
        pyro.get_param_store()[f"annealed_step_{name}"] *= 10


vectorized = pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])


@vectorized
@pytest.mark.parametrize("num_steps", [1, 3])
def test_weights_of_paths_are_unbiased(num_steps, vectorize):
    """E[w] = p(x), for a step size and persistence that were not tuned."""
    objective = AnnealedELBO(1, num_steps, vectorize_particles=vectorize)
    if vectorize:
        objective = AnnealedELBO(4000, num_steps, outer="importance", vectorize_particles=True)
    objective.loss(model, guide)
    lengthen("g", "z")
    pyro.set_rng_seed(0)
    losses = mean_loss(lambda: objective.loss(model, guide), 30 if vectorize else 1200)
    assert_mean_equals((-losses - LOG_EVIDENCE).exp(), 1.0)


def test_vectorized_paths_are_those_of_single_ones():
    """In law: the mean of the bound is the same."""
    pyro.set_rng_seed(0)
    many = AnnealedELBO(2000, 3, vectorize_particles=True)
    together = mean_loss(lambda: many.loss(model, guide), 20)
    one = mean_loss(lambda: AnnealedELBO(1, 3).loss(model, guide), 800)
    assert abs(together.mean() - one.mean()) < critical_value() * one.std() / math.sqrt(800) + (
        critical_value() * together.std() / math.sqrt(20)
    )


def test_bound_rises_with_the_steps_to_the_evidence():
    pyro.set_rng_seed(0)
    values = {}
    for num_steps in (0, 2, 8, 32):
        objective = (
            AnnealedELBO(3000, num_steps, vectorize_particles=True)
            if num_steps
            else StandardELBO(3000, vectorize_particles=True)
        )
        pyro.clear_param_store()
        objective.loss(model, guide)
        for name in ("g", "z"):
            if num_steps:
                pyro.get_param_store()[f"annealed_step_{name}"] *= 20
        values[num_steps] = -mean_loss(partial(objective.loss, model, guide), 10)
    means = [v.mean().item() for v in values.values()]
    assert means == sorted(means)
    assert means[0] < LOG_EVIDENCE - 0.7 and LOG_EVIDENCE - 0.3 < means[-1] < LOG_EVIDENCE


@vectorized
def test_gradient_is_that_of_the_loss(vectorize):
    """By finite differences under the same seed, in parameters of guide, steps and persistence."""
    objective = AnnealedELBO(4, 2, vectorize_particles=vectorize)

    def evaluate(grads):
        pyro.set_rng_seed(3)
        return (objective.loss_and_grads if grads else objective.loss)(model, guide)

    pyro.clear_param_store()
    evaluate(False)
    store = pyro.get_param_store()
    names = ["loc", "annealed_persistence", "annealed_step_g", "annealed_step_z"]
    parameters = [store[name].unconstrained() for name in names]
    for p in parameters:
        p.grad = None
    evaluate(True)
    for p in parameters:
        flat, grad = p.data.view(-1), p.grad.reshape(-1)
        losses = []
        for step in (1e-5, -1e-5):
            flat[0] += step
            losses.append(evaluate(False))
            flat[0] -= step
        slope = (losses[0] - losses[1]) / 2e-5
        assert grad[0].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


Y = torch.tensor([0.3, -0.2, 1.5, 0.1], dtype=torch.float64)


def scale_model():
    """A posterior that is no Gaussian in unconstrained space."""
    scale = pyro.sample("scale", dist.HalfNormal(2 * ONE))
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(0 * Y, scale), obs=Y)


def log_evidence_of_scale_model():
    scales = torch.linspace(1e-3, 20, 200001, dtype=torch.float64)
    log_joint = dist.HalfNormal(2.0).log_prob(scales)
    log_joint += dist.Normal(0.0, scales[:, None]).log_prob(Y).sum(-1)
    return (log_joint.logsumexp(0) + math.log(scales[1] - scales[0])).item()


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal])
def test_weights_of_paths_in_unconstrained_space_are_unbiased(autoguide):
    pyro.set_rng_seed(0)
    auto = autoguide(scale_model, init_scale=0.7)
    auto()
    objective = AnnealedELBO(4000, 4, outer="importance", vectorize_particles=True)
    objective.loss(scale_model, auto)
    lengthen(*(n.removeprefix("annealed_step_") for n in pyro.get_param_store() if "_step_" in n))
    losses = mean_loss(lambda: objective.loss(scale_model, auto), 40)
    assert_mean_equals((-losses - log_evidence_of_scale_model()).exp(), 1.0)


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal])
def test_training_with_an_autoguide_beats_the_elbo_of_its_family(autoguide):
    def trained(objective):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        auto = autoguide(scale_model, init_scale=0.5)
        svi = SVI(scale_model, auto, Adam({"lr": 0.02}), loss=objective)
        for _ in range(250):
            svi.step()
        return -mean_loss(lambda: objective.loss(scale_model, auto), 40)

    plain = trained(StandardELBO(32, vectorize_particles=True)).mean()
    annealed = trained(AnnealedELBO(32, 8, vectorize_particles=True))
    error = critical_value() * annealed.std() / math.sqrt(40)
    assert plain < annealed.mean() < log_evidence_of_scale_model() + error


@pytest.mark.parametrize(
    ("model_and_guide", "message"),
    [
        ((lambda: pyro.sample("p", dist.Beta(2.0, 2.0)),) * 2, "support of 'p'"),
        ((lambda: pyro.sample("c", dist.Bernoulli(0.4)),) * 2, "'c' is drawn from a Bernoulli"),
        ((lambda: None, lambda: None), "no latents"),
    ],
)
def test_latents_that_cannot_move_are_refused(model_and_guide, message):
    with pytest.raises(ValueError, match=message):
        AnnealedELBO(1, 2).loss(*model_and_guide)


def test_subsampling_is_refused():
    toy = toys.hierarchical(num_data=5, subsample_size=2)
    with pytest.raises(ValueError, match=r"plate 'data' is subsampled \(2 of 5\)"):
        AnnealedELBO(1, 2).loss(toy.model, toy.guide)
    with pytest.raises(ValueError, match="at least 1"):
        AnnealedELBO(1, 0)
