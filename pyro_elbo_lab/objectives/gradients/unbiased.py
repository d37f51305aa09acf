"""Gradient estimators: from particles and a target to a scalar whose gradient is unbiased.

Write V for the value, l_k for the log-weights, v = dV/dl and h = diag(d2V/dl2). The value itself,
differentiated through the draws, is the *pathwise* estimator sum v dl. The others add terms of zero
mean to it:

* *doubly reparameterized*: + sum v d log q(z fixed) - sum h (dl through z).
  For the ELBO it is sticking the landing (Roeder, Wu and Duvenaud 2017), for the
  importance-weighted bound DReG (Tucker, Lawson, Gu and Maddison 2019, coefficients w^2), for
  others its generalization. At the exact posterior it vanishes for every draw. Where the user
  scales or masks log q at a site, its share of both sums carries that factor.
* *score*: what `score` adds, for draws that cannot be differentiated.

"z fixed" and "through z" need no second run of the program: the part of a gradient that flows
through given tensors is `paths.through(total, tensors)`, one backward pass to those tensors. A draw
is treated given what was drawn before it, so the latents upstream of log q are fixed too, while a
local draw's dependence on shared latents stays fully pathwise. That makes hierarchical guides
q(z_i | z_global) stick the landing as well.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyro_elbo_lab.objectives.bounds import derivatives, mean
from pyro_elbo_lab.objectives.gradients.paths import without
from pyro_elbo_lab.objectives.gradients.score import has_sampled_log_q, score
from pyro_elbo_lab.objectives.particles.layout import Layout
from pyro_elbo_lab.objectives.particles.scored import CellBlock, Draws, Particles, sum_except
from pyro_elbo_lab.objectives.smoothness import has_kinks
from pyro_elbo_lab.objectives.target import Target, along_outer, outer_derivatives, totals, value
from pyro_elbo_lab.programs.structure.analysis import Latent, Structure
from pyro_elbo_lab.programs.structure.factors import FactorKey

Gradient = Literal["auto", "pathwise", "doubly_reparameterized", "score", "wake"]
Estimator = Literal[
    "pathwise", "doubly_reparameterized", "score", "wake", "doubly_reparameterized_wake", "dice"
]


@dataclass(frozen=True)
class Choice:
    """The estimator of one latent and why."""

    estimator: Estimator
    reason: str


Choices = Mapping[str, Choice]


@dataclass(frozen=True)
class Method:
    """A family of gradient estimators.

    Attributes:
        gradients: what a user may ask for.
        choose: (structure, layout, gradient, target) -> the estimator of every latent.
        surrogate: (particles, target, choices) -> the scalar that is differentiated.
    """

    gradients: tuple[Gradient, ...]
    choose: Callable[[Structure, Layout, Gradient, Target], dict[str, Choice]]
    surrogate: Callable[[Particles, Target, Choices], Tensor]


def choose(
    structure: Structure, layout: Layout, gradient: Gradient, target: Target
) -> dict[str, Choice]:
    """The estimator of every latent.

    Args:
        structure: dependencies of model and guide.
        layout: cells and shared latents.
        target: what is optimized.
        gradient: "auto" is doubly reparameterized where every latent of the block is
            reparameterized and the bound has no kinks, score where a latent is not reparameterized,
            pathwise for the rest.

    Returns:
        A choice for every latent, by name.

    Raises:
        ValueError: the estimator asked for is illegal for a latent, which is named.
    """
    kinked = _in_kinked_bound(structure, layout, target)
    if gradient == "auto":
        chosen = {
            name: _automatic(latent, coupled(latent, structure, layout, target), name in kinked)
            for name, latent in structure.latents.items()
        }
    else:
        assert gradient != "wake"
        for name, latent in structure.latents.items():
            _check_legal(latent, gradient, name in kinked)
        chosen = dict.fromkeys(structure.latents, Choice(gradient, "asked for"))
    return {name: _within_sums(structure.latents[name], one) for name, one in chosen.items()}


def _within_sums(latent: Latent, choice: Choice) -> Choice:
    """The score of what is drawn once for every value of an enumerated site stands in the weights
    of the average, where `value` differentiates it."""
    if choice.estimator != "score" or not latent.within:
        return choice
    sites = ", ".join(map(repr, latent.within))
    return Choice("dice", f"{choice.reason}; drawn for every value of {sites}")


def surrogate(particles: Particles, target: Target, choices: Choices) -> Tensor:
    """The surrogate of the expected objective.

    Args:
        particles: the scored draws.
        target: what is optimized.
        choices: the estimator of every latent, from `choose`.

    Returns:
        A scalar whose gradient is an unbiased estimate of that of the expected objective, or of its
        negative where the objective is minimized. Only its gradient has a meaning.
    """
    chosen = by_estimator(particles, choices)
    total, baseline_loss = value(particles, target), particles.zero
    if "doubly_reparameterized" in chosen:
        draws = chosen["doubly_reparameterized"]
        total = total + doubly_reparameterized(particles, target, draws)
    if "score" in chosen:
        term, baseline_loss = score(particles, target, chosen["score"])
        total = total + term
    return target.sign * total - baseline_loss


UNBIASED = Method(("auto", "pathwise", "doubly_reparameterized", "score"), choose, surrogate)
"""Gradients of the expected objective."""


def by_estimator(particles: Particles, choices: Choices) -> dict[Estimator, list[Draws]]:
    """The draws, sorted by their latents' estimators."""
    chosen: dict[Estimator, list[Draws]] = {}
    for name, drawn in particles.draws.items():
        chosen.setdefault(choices[name].estimator, []).append(drawn)
    return chosen


def doubly_reparameterized(particles: Particles, target: Target, draws: list[Draws]) -> Tensor:
    """The control variate sum v log q(z fixed) - sum h (l through z), of zero mean.

    Args:
        particles: the scored draws.
        target: what is optimized.
        draws: of the latents that take this estimator.
    """
    upstream = upstream_of(particles)
    outer = outer_derivatives(particles, target)
    shared = [
        d
        for d in draws
        if d.latent.name not in particles.layout.local and has_sampled_log_q(d, particles)
    ]
    direct = total = particles.zero
    for drawn in shared:
        log_q = drawn.log_q(fixed=True, scaled=True).mean(0)
        direct = direct + drawn.weight * (along_outer(outer[0], log_q.dim()) * log_q).sum()
    if shared and target.outer is not mean:
        bent = (outer[1] * totals(particles, target.inner)).sum()
        linear = through_draws(bent, 1.0, shared)
        total = total - avoiding(upstream, linear, particles.zero)
    for block in particles.cells:
        local = [d for d in draws if d.latent.name in block.latents]
        if local:
            slope, curvature = cell_derivatives(block, target, outer)
            for drawn in local:
                log_q = sum_except(drawn.log_q(fixed=True, scaled=True), block.plates.values())
                direct = direct + drawn.weight * (slope * log_q).sum()
            bent = (curvature * block.log_weights).sum()
            linear = through_draws(bent, block.weight, local)
            total = total - block.weight * avoiding(upstream, linear, particles.zero)
    return total + without(direct, generations(upstream))


def cell_derivatives(
    block: CellBlock, target: Target, outer: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """First and second derivative of the value in the log-weights, over the block's weight."""
    slope, curvature = derivatives(target.inner, block.log_weights)
    outer_slope, outer_curvature = (along_outer(d, slope.dim() - 1) for d in outer)
    return outer_slope * slope, outer_slope * curvature + outer_curvature * block.weight * slope**2


def through_draws(bent: Tensor, weight: float, draws: list[Draws]) -> dict[int, Tensor]:
    """The part of `bent` that flows through draws, by the generation of the draw, everything
    upstream of which is live.

    Each draw enters as (total derivative, detached) * z, so what is drawn later counts with it.
    """
    triples = [
        (drawn.latent.generation, z, scale * drawn.weight / weight)
        for drawn in draws
        for z, scale in zip(drawn.values, drawn.scales(), strict=True)
        if z.requires_grad
    ]
    if not triples or not bent.requires_grad:
        return {}
    inputs = [z for _, z, _ in triples]
    grads = torch.autograd.grad(bent, inputs, retain_graph=True, allow_unused=True)
    linear: dict[int, Tensor] = {}
    for (generation, z, scale), grad in zip(triples, grads, strict=True):
        if grad is not None:
            term = (scale * grad * z).sum()
            linear[generation] = linear.get(generation, torch.zeros_like(bent)) + term
    return linear


def avoiding(upstream: list[Draws], linear: Mapping[int, Tensor], zero: Tensor) -> Tensor:
    """The part of terms, by generation, that does not flow through what was drawn before."""
    total = zero
    for generation, term in linear.items():
        before = [d for d in upstream if d.latent.generation < generation]
        total = total + without(term, generations(before))
    return total


def _in_kinked_bound(structure: Structure, layout: Layout, target: Target) -> frozenset[str]:
    """The latents whose log-weights enter a bound with kinks."""
    if target.outer is not mean and has_kinks(target.outer, target.num_outer):
        return frozenset(structure.latents)
    local = layout.local & structure.latents.keys()
    return local if local and has_kinks(target.inner, target.num_inner) else frozenset()


def _automatic(latent: Latent, others: list[Latent], kinked: bool) -> Choice:
    if not latent.reparameterized:
        return Choice("score", f"{latent.distribution} is not reparameterized")
    if not latent.evaluable:
        return Choice(
            "pathwise", f"log q of this {latent.distribution} is reliable only at its last draw"
        )
    if kinked:
        return Choice("pathwise", "the bound's slope jumps")
    obstacle = obstacle_among(others)
    if obstacle:
        return Choice("pathwise", f"its weights hold {obstacle}")
    return Choice("doubly_reparameterized", f"{latent.distribution} is reparameterized")


def obstacle_among(latents: list[Latent]) -> str | None:
    """The first latent that keeps those with which it shares weights from being doubly
    reparameterized."""
    for latent in latents:
        if not latent.reparameterized:
            return f"'{latent.name}', which needs the score"
        if not latent.evaluable:
            return f"'{latent.name}', reliable only at its last draw"
    return None


def coupled(latent: Latent, structure: Structure, layout: Layout, target: Target) -> list[Latent]:
    """The latents that share weights with this one."""
    if target.outer is not mean:
        return list(structure.latents.values())
    if latent.name not in layout.local:
        return []
    cells = layout.cells[FactorKey("guide", latent.name)]
    return [
        other
        for name, other in structure.latents.items()
        if name in layout.local and layout.cells[FactorKey("guide", name)] == cells
    ]


def _check_legal(latent: Latent, estimator: Estimator, kinked: bool) -> None:
    found = None
    if not latent.reparameterized and estimator != "score":
        found = f"has the distribution {latent.distribution}, whose draws are not differentiable"
    elif not latent.evaluable and estimator != "pathwise":
        found = f"is a {latent.distribution} whose log-density is reliable only at its last draw"
    elif kinked and estimator == "doubly_reparameterized":
        found = "enters a bound whose slope jumps, which would bias this gradient"
    if found:
        raise ValueError(
            f"gradient={estimator!r} is illegal for latent '{latent.name}': it {found}. "
            "Use gradient='auto', which chooses an estimator for each site."
        )


def upstream_of(particles: Particles) -> list[Draws]:
    read = {name for d in particles.draws.values() for name in d.latent.upstream}
    return [particles.draws[name] for name in particles.draws if name in read]


def generations(draws: list[Draws]) -> list[list[Tensor]]:
    """The values of draws, sorted so that none depends on its own or a later list."""
    sorted_values: dict[int, list[Tensor]] = {}
    for drawn in draws:
        sorted_values.setdefault(drawn.latent.generation, []).extend(drawn.values)
    return [sorted_values[g] for g in sorted(sorted_values)]
