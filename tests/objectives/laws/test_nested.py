"""Importance weights over outer particles too, on one global and 100 local Gaussian latents.

log p(x) = -181.775. Measured nats below it with K M = 256 particles (pytest -s prints them with
their standard errors), for guides whose factors are wrong in one place or two:

    K x M                         1 x 256   4 x 64  16 x 16   64 x 4  256 x 1
    right global, mean             15.898    2.445    0.556    0.135    0.032
    right global, importance        3.192    0.229    0.052    0.033    0.032
    wrong global, mean             16.558    3.111    1.215    0.799    0.629
    wrong global, importance        3.414    0.281    0.098    0.169    0.629
    right local, mean               1.017    0.749    0.681    0.671    0.601
    right local, importance         0.008    0.016    0.034    0.125    0.601
"""

import math
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_elbo_lab import ImportanceWeightedELBO
from tests.objectives.laws import toys
from tests.objectives.laws.estimation import mean_loss, values_and_gradients
from tests.objectives.laws.test_landing import assert_lands, at_the_posterior
from tests.objectives.laws.test_plates import ONE, N, X, guide, log_evidence, model
from tests.support.tolerances import critical_value

Outer = Literal["mean", "importance"]
FAST: dict[str, Any] = {"vectorize_particles": True}
PRECISION = 1 + N / 2  # of the global latent given x
SPLITS = [(1, 256), (4, 64), (16, 16), (64, 4), (256, 1)]


def wrong_global(shift, local_scale):
    """A global factor of twice the posterior's variance, one standard deviation off, above local
    factors whose right shift and scale are 0 and 0.707."""

    def program():
        scale = ONE / math.sqrt(PRECISION)
        g = pyro.sample("g", dist.Normal(X.sum() / 2 / PRECISION + scale, math.sqrt(2) * scale))
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal((g + X) / 2 + shift, local_scale * ONE))

    return program


GUIDES = {
    "right global": guide,
    "wrong global": wrong_global(0.3, 0.9),
    "right local": wrong_global(0.05, 0.73),
}
NUM = 300
vectorized = pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])
every_guide = pytest.mark.parametrize("guide_name", GUIDES)


@cache
def bounds(guide_name: str, num_inner: int, num_outer: int, outer: Outer) -> torch.Tensor:
    """At evaluations in a row, the same draws for both kinds of outer."""
    pyro.set_rng_seed(0)
    objective = ImportanceWeightedELBO(num_inner, num_outer, outer=outer, **FAST)
    return -mean_loss(lambda: objective.loss(model, GUIDES[guide_name]), NUM)


def gap(guide_name: str, num_inner: int, num_outer: int, outer: Outer) -> tuple[float, float]:
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


def test_best_split_of_a_budget():
    """With a wrong global factor no split of K M = 256 particles gets as close by the mean."""
    table = {
        name: {
            outer: {split: gap(name, *split, outer) for split in SPLITS}
            for outer in ("mean", "importance")
        }
        for name in GUIDES
    }
    print(f"\nlog p(x) = {log_evidence():.3f}; nats below it at K x M\n{_printed(table)}")
    mean, importance = (min(by_split.values()) for by_split in table["wrong global"].values())
    error = math.hypot(mean[1], importance[1])
    assert mean[0] - importance[0] > critical_value() * error


def _printed(table):
    head = " " * 26 + "".join(f"{f'{k} x {m}':>16}" for k, m in SPLITS)
    lines = [
        f"{name + ', ' + outer:26}" + "".join(f"{v:8.3f} ({e:.3f})" for v, e in gaps.values())
        for name, by_outer in table.items()
        for outer, gaps in by_outer.items()
    ]
    return "\n".join([head, *lines])


def test_bound_rises_with_the_outer_particles_to_the_evidence():
    gaps = [gap("right local", 16, num_outer, "importance") for num_outer in (1, 4, 16, 64)]
    print("\nM = 1, 4, 16, 64 at K = 16:", [f"{g:.4f} ({e:.4f})" for g, e in gaps])
    for (before, error), (after, after_error) in pairwise(gaps):
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
@vectorized
def test_equals_joint_weights_without_local_latents(gradient, vectorize):
    """The bound of K M particles, under the same seed.

    Only the score's gradient differs draw by draw: its leave-one-out baseline knows other particles
    of the same m, and other m.
    """
    toy = without_local_latents()
    keywords = {"gradient": gradient, "vectorize_particles": vectorize}
    nested, joint = (
        values_and_gradients(objective, toy, 3)
        for objective in (
            ImportanceWeightedELBO(3, 4, outer="importance", **keywords),
            ImportanceWeightedELBO(12, **keywords),
        )
    )
    torch.testing.assert_close(nested[0], joint[0])
    if gradient != "score":
        torch.testing.assert_close(nested[1], joint[1])


def without_local_latents():
    parameters = {
        name: torch.tensor(value, dtype=torch.float64).requires_grad_()
        for name, value in (("theta", 0.3), ("loc", -0.2))
    }

    def global_model():
        g = pyro.sample("g", dist.Normal(toys.parameter(parameters, "theta"), ONE))
        pyro.sample("x", dist.Normal(g, 0.7 * ONE), obs=0.8 * ONE)

    def global_guide():
        pyro.sample("g", dist.Normal(toys.parameter(parameters, "loc"), 0.9 * ONE))

    return toys.Toy(global_model, global_guide, parameters, toys.local().nodes)


@vectorized
def test_gradient_vanishes_at_the_exact_posterior(vectorize):
    toy = at_the_posterior(num_data=3)
    objective = ImportanceWeightedELBO(
        4, 3, "doubly_reparameterized", outer="importance", vectorize_particles=vectorize
    )
    assert_lands(objective, toy)
    values, _ = values_and_gradients(objective, toy, 5)
    torch.testing.assert_close(values, values[:1].expand(5))
