"""Particles that have sites of their own each, as where a program branches on a latent.

Each particle is a record of one run. With one weight for all its sites, every log-weight l_k is a
scalar, and neither the bound nor its gradient asks what sites it came from:

    V = B(F(l_.1), ..., F(l_.M)),    v = dV/dl,    h = diag(d2V/dl2)

The estimators are those of `unbiased` and `score`, so that it makes no difference to them whether
the sites of all particles happen to agree. What a score-function gradient takes off a particle's
signal must not depend on the particle's own draws. That rules out a baseline over "the particles
with the same sites", as the draws decide who these are. A linear objective takes the mean over the
other particles that have the latent, in plates of the same sizes: whether particle k has it is
settled before k draws it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_elbo_lab.objectives.bounds import mean
from pyro_elbo_lab.objectives.gradients.paths import without
from pyro_elbo_lab.objectives.gradients.score import (
    downstream_cost,
    gain,
    gain_of_estimates,
    score,
    score_with,
)
from pyro_elbo_lab.objectives.gradients.unbiased import (
    Choices,
    avoiding,
    by_estimator,
    cell_derivatives,
    doubly_reparameterized,
    generations,
    through_draws,
    upstream_of,
)
from pyro_elbo_lab.objectives.particles.scored import CellBlock, Draws, Particles
from pyro_elbo_lab.objectives.target import Target, outer_derivatives, totals, value

LINEAR = Target(mean)


@dataclass(frozen=True)
class Mixture:
    """Particles with different sites.

    Attributes:
        parts: a record of one run for each particle, those of the first inner particle first;
            with one weight for all sites, or for a linear objective with shared factors alone.
        choices: the estimators of each particle's latents.
    """

    parts: tuple[Particles, ...]
    choices: tuple[Choices, ...]


def mixture_value(mixture: Mixture, target: Target) -> Tensor:
    """V, a scalar in nats.

    Raises:
        ValueError: a subsampled plate inside a non-linear bound.
    """
    return value(_together(mixture, target), target)


def mixture_surrogate(mixture: Mixture, target: Target) -> Tensor:
    """As `gradients.surrogate`, of particles with different sites."""
    linear = target.inner is mean and target.outer is mean
    total, loss = _linear(mixture) if linear else _weighted(mixture, target)
    return target.sign * total - loss


def _together(mixture: Mixture, target: Target) -> Particles:
    """One record of all particles, of which nothing but their log-weights is left."""
    log_weights = torch.stack([totals(part, mean).squeeze(0) for part in mixture.parts])
    first = mixture.parts[0]
    runs = tuple(run for part in mixture.parts for run in part.runs)
    block = CellBlock(
        log_weights=log_weights.reshape(target.num_inner, -1),
        weight=1.0,
        plates={},
        reads=frozenset(),
        latents=(),
    )
    return Particles(first.structure, first.layout, (), (block,), {}, runs)


def _linear(mixture: Mixture) -> tuple[Tensor, Tensor]:
    costs = [
        {name: downstream_cost(part, mean, drawn).detach() for name, drawn in part.draws.items()}
        for part in mixture.parts
    ]
    total = loss = mixture.parts[0].zero
    for i, (part, choices) in enumerate(zip(mixture.parts, mixture.choices, strict=True)):
        chosen = by_estimator(part, choices)
        total = total + value(part, LINEAR)
        if "doubly_reparameterized" in chosen:
            total = total + doubly_reparameterized(part, LINEAR, chosen["doubly_reparameterized"])
        if "score" in chosen:
            elsewhere = _elsewhere(costs, i, [d.latent.name for d in chosen["score"]])
            term, baseline_loss = score(part, LINEAR, chosen["score"], elsewhere)
            total, loss = total + term, loss + baseline_loss
    return total / len(mixture.parts), loss / len(mixture.parts)


def _elsewhere(
    costs: Sequence[Mapping[str, Tensor]], own: int, names: list[str]
) -> dict[str, Tensor]:
    """The mean over other particles of what is downstream of a latent, where they have it."""
    means = {}
    for name in names:
        shape = costs[own][name].shape
        others = [
            cost[name]
            for i, cost in enumerate(costs)
            if i != own and name in cost and cost[name].shape == shape
        ]
        if others:
            means[name] = torch.stack(others).mean(0)
    return means


def _weighted(mixture: Mixture, target: Target) -> tuple[Tensor, Tensor]:
    together = _together(mixture, target)
    (block,) = together.cells
    slope, curvature = cell_derivatives(block, target, outer_derivatives(together, target))
    if mixture.parts[0].cells:
        signal, score_slope, share = gain(together, target, block)
    else:  # one inner particle, whose latents all count as shared
        signal, score_slope, share = *gain_of_estimates(together, target), 1.0
    total, loss = value(together, target), together.zero
    pairs = zip(mixture.parts, mixture.choices, strict=True)
    for (part, choices), v, h, s, w in zip(
        pairs, *map(torch.flatten, (slope, curvature, signal, score_slope)), strict=True
    ):
        chosen = by_estimator(part, choices)
        total = total + _doubly(part, chosen.get("doubly_reparameterized", []), v, h)
        for drawn in chosen.get("score", []):
            one = score_with(s.reshape(1, 1), w, drawn, ())
            total, loss = total + share * one.term, loss + share * one.loss
    return total, loss


def _doubly(particles: Particles, draws: list[Draws], slope: Tensor, curvature: Tensor) -> Tensor:
    """The control variate of one particle, whose weight is one scalar."""
    direct = particles.zero
    for drawn in draws:
        log_q = drawn.log_q(fixed=True, scaled=True).sum()
        direct = direct + drawn.weight * slope * log_q
    upstream = upstream_of(particles)
    bent = curvature * totals(particles, mean).sum()
    linear = through_draws(bent, 1.0, draws)
    return without(direct, generations(upstream)) - avoiding(upstream, linear, particles.zero)
