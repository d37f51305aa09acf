"""Importance weights over outer particles too, on one global and 100 local Gaussian latents.

The model and guide of `test_plates`, whose global factor is the exact posterior, and one with a
global factor that is wrong. log p(x) = @EVIDENCE@; nats below it, at K M = 256 (pytest -s prints
them with standard errors, which are below 0.04):

@TABLE@
"""

import math
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_elbo_lab import ImportanceWeightedELBO
from tests.laws import toys
from tests.laws.estimation import mean_loss, values_and_gradients
from tests.laws.test_plates import ONE, N, X, guide, log_evidence, model
from tests.laws.test_value import posterior_guide
from tests.tolerances import critical_value

FAST = {"vectorize_particles": True}
PRECISION = 1 + N / 2  # of the global latent given x
BUDGET = 256
SPLITS = [(1, 256), (4, 64), (16, 16), (64, 4), (256, 1)]


def wrong_guide():
    """A global factor of twice the variance, one standard deviation off; local factors as exact as
    in `test_plates`."""
    scale = ONE / math.sqrt(PRECISION)
    g = pyro.sample("g", dist.Normal(X.sum() / 2 / PRECISION + scale, math.sqrt(2) * scale))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal((g + X) / 2 + 0.3, 0.9 * ONE))


def close_guide():
    """Local factors that are nearly exact, so that the bound can reach log p(x)."""
    scale = ONE / math.sqrt(PRECISION)
    g = pyro.sample("g", dist.Normal(X.sum() / 2 / PRECISION + scale, math.sqrt(2) * scale))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal((g + X) / 2 + 0.05, 0.73 * ONE))


GUIDES = {"right global": guide, "wrong global": wrong_guide, "close": close_guide}
NUM = 100
every_guide = pytest.mark.parametrize("guide_name", GUIDES)


@cache
def bounds(guide_name: str, num_inner: int, num_outer: int, outer: str) -> torch.Tensor:
    """At evaluations in a row, the same draws for both kinds of outer."""
    pyro.set_rng_seed(0)
    objective = ImportanceWeightedELBO(num_inner, num_outer, outer=outer, **FAST)
    return -mean_loss(lambda: objective.loss(model, GUIDES[guide_name]), NUM)


def gap(guide_name: str, num_inner: int, num_outer: int, outer: str) -> tuple[float, float]:
    """log p(x) less the bound, in nats, and its standard error."""
    values = bounds(guide_name, num_inner, num_outer, outer)
    return log_evidence() - values.mean().item(), values.std().item() / math.sqrt(NUM)


@every_guide
@pytest.mark.parametrize(("num_inner", "num_outer"), SPLITS[:-1])
def test_weights_are_tighter_than_the_mean(num_inner, num_outer, guide_name):
    """At the same K and M, for every draw; and their expectation is below log p(x)."""
    averaged, weighted = (
        bounds(guide_name, num_inner, num_outer, outer) for outer in ("mean", "importance")
    )
    assert (weighted > averaged).all()
    value, error = gap(guide_name, num_inner, num_outer, "importance")
    assert value > -critical_value() * error


def test_one_outer_particle_is_the_same_for_both():
    assert gap("wrong global", 8, 1, "mean") == gap("wrong global", 8, 1, "importance")


def test_table():
    """The best split of a budget of particles is weighted in both."""
    lines = [f"{'K x M':12}" + "".join(f"{name + ', ' + o:>27}" for name in GUIDES for o in OUTERS)]
    for num_inner, num_outer in SPLITS:
        gaps = [gap(name, num_inner, num_outer, outer) for name in GUIDES for outer in OUTERS]
        cells = "".join(f"{value:18.3f} ({error:.3f}) " for value, error in gaps)
        lines.append(f"{num_inner:4} x {num_outer:<5}{cells}")
    print(f"\nlog p(x) = {log_evidence():.3f}; nats below it\n" + "\n".join(lines))

OUTERS = ("mean", "importance")


def test_bound_rises_with_the_outer_particles_to_the_evidence():
    gaps = [gap("close", 16, num_outer, "importance") for num_outer in (1, 4, 16, 64, 256)]
    print("\nM = 1, 4, 16, 64, 256 at K = 16:", [f"{g:.4f} ({e:.4f})" for g, e in gaps])
    for (before, error), (after, after_error) in zip(gaps, gaps[1:], strict=False):
        assert before > after - critical_value() * math.hypot(error, after_error)
    assert gaps[0][0] - gaps[-1][0] > critical_value() * math.hypot(gaps[0][1], gaps[-1][1])
    assert abs(gaps[-1][0]) < 0.05


def test_subsampling_is_refused():
    objective = ImportanceWeightedELBO(2, 3, outer="importance", **FAST)
    with pytest.raises(ValueError, match=r"Plate 'data' is subsampled \(10 of 100\).*outer='mean'"):
        objective.loss(model, guide, 10)
    with pytest.raises(ValueError, match="subsampled sum inside a logarithm is biased"):
        objective.loss_and_grads(model, guide, 10)
    assert math.isfinite(objective.loss(model, guide))


@pytest.mark.parametrize("gradient", ["pathwise", "doubly_reparameterized", "score"])
@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])
def test_equals_joint_weights_without_local_latents(gradient, vectorize):
    """K x M draws of one latent: the bound of K M particles, in value and gradient."""
    toy = toys.hierarchical(num_data=1)

    def alone(program):
        def programmed():
            pyro.sample("g", program)

        return programmed

    parameters = {
        "theta": torch.tensor(0.3, dtype=torch.float64).requires_grad_(),
        "loc": torch.tensor(-0.2, dtype=torch.float64).requires_grad_(),
    }
    one = torch.ones((), dtype=torch.float64)

    def global_model():
        g = pyro.sample("g", dist.Normal(toys.parameter(parameters, "theta"), one))
        pyro.sample("x", dist.Normal(g, 0.7 * one), obs=0.8 * one)

    def global_guide():
        pyro.sample("g", dist.Normal(toys.parameter(parameters, "loc"), 0.9 * one))

    toy = toys.Toy(global_model, global_guide, parameters, toy.nodes)
    keywords = {"gradient": gradient, "vectorize_particles": vectorize}
    nested = ImportanceWeightedELBO(3, 4, outer="importance", **keywords)
    joint = ImportanceWeightedELBO(12, **keywords)
    torch.testing.assert_close(
        values_and_gradients(nested, toy, 3), values_and_gradients(joint, toy, 3)
    )


@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])
def test_gradient_vanishes_at_the_exact_posterior(vectorize):
    toy = toys.hierarchical(num_data=3)
    with torch.no_grad():
        for name, optimum in posterior_guide(3).items():
            toy.parameters[name].copy_(optimum)
    objective = ImportanceWeightedELBO(
        4, 3, "doubly_reparameterized", outer="importance", vectorize_particles=vectorize
    )
    values, gradients = values_and_gradients(objective, toy, 5)
    torch.testing.assert_close(values, values[:1].expand(5))
    guide_gradients = gradients[:, 1:]
    torch.testing.assert_close(
        guide_gradients, torch.zeros_like(guide_gradients), atol=1e-12, rtol=0
    )
    assert gradients[:, 0].abs().min() > 1e-3  # the model's own parameter still learns
