"""Gradient estimators: from particles and a bound F to a scalar whose gradient is unbiased.

Write l_k for the log-weights, v = dF/dl and h = diag(d2F/dl2). The value itself, differentiated
through the draws, is the *pathwise* estimator sum v dl. The others add terms of zero mean to it:

* *doubly reparameterized*: + sum v d log q(z fixed) - sum h (dl through z).
  For the ELBO it is sticking the landing (Roeder, Wu and Duvenaud 2017), for the
  importance-weighted bound DReG (Tucker, Lawson, Gu and Maddison 2019, coefficients w^2), for
  others its generalisation. At the exact posterior it vanishes for every draw. Where the user
  scales or masks log q at a site, its share of both sums carries that factor.
* *score*: + sum (F - F without draw k) d log q(z_k) + sum v' d log q(z_k) with v' the slope at the
  leave-one-out log-weights; for draws that cannot be differentiated. For the ELBO it is RLOO (Kool,
  van Hoof and Welling 2019), for the importance-weighted bound VIMCO (Mnih and Rezende 2016). A
  shared latent's cost is summed within its plates and downstream of it only.

"z fixed" and "through z" need no second run of the program: the part of a gradient that flows
through given tensors is `through(total, tensors)`, one backward pass to those tensors. A draw is
treated given what was drawn before it, so the latents upstream of log q are fixed too, while a
local draw's dependence on shared latents stays fully pathwise. That makes hierarchical guides
q(z_i | z_global) stick the landing as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyro_elbo_lab.bounds import Bound, derivatives, leave_one_out
from pyro_elbo_lab.layout import Layout
from pyro_elbo_lab.particles import CellBlock, Draws, Particles, sum_except
from pyro_elbo_lab.structure import FactorKey, Latent, Structure

Gradient = Literal["auto", "pathwise", "doubly_reparameterized", "score"]
Estimator = Literal["pathwise", "doubly_reparameterized", "score"]
GRADIENTS: tuple[Gradient, ...] = ("auto", "pathwise", "doubly_reparameterized", "score")


@dataclass(frozen=True)
class Choice:
    """The estimator of one latent and why."""

    estimator: Estimator
    reason: str


def choose(structure: Structure, layout: Layout, gradient: Gradient) -> dict[str, Choice]:
    """The estimator of every latent.

    Args:
        structure: dependencies of model and guide.
        layout: cells and shared latents.
        gradient: "auto" is doubly reparameterized where every latent of the block is
            reparameterized, score where a latent is not, pathwise for the rest.

    Returns:
        A choice for every latent, by name.

    Raises:
        ValueError: the estimator asked for is illegal for a latent, which is named.
    """
    if gradient == "auto":
        latents = structure.latents.items()
        return {name: _automatic(latent, structure, layout) for name, latent in latents}
    for latent in structure.latents.values():
        _check_legal(latent, gradient)
    return dict.fromkeys(structure.latents, Choice(gradient, "asked for"))


def value(particles: Particles, bound: Bound) -> Tensor:
    """The objective: mean_m [ sum of shared factors + sum of weight * F over cells ], in nats."""
    total = particles.zero
    for factor in particles.shared:
        total = total + factor.weight * factor.value.sum() / particles.num_outer
    for block in particles.cells:
        total = total + block.weight * bound(block.log_weights).sum() / particles.num_outer
    return total


def zero_mean_terms(particles: Particles, bound: Bound, choices: Mapping[str, Choice]) -> Tensor:
    """What every latent's estimator adds to the differentiated value.

    Args:
        particles: the scored draws.
        bound: F.
        choices: the estimator of every latent, from `choose`.

    Returns:
        A scalar c. The gradient of `value(particles, bound) + c` is an unbiased estimate of the
        gradient of the expected objective. The value of c has no meaning.
    """
    chosen: dict[Estimator, list[Draws]] = {}
    for name, drawn in particles.draws.items():
        chosen.setdefault(choices[name].estimator, []).append(drawn)
    total = particles.zero
    if "doubly_reparameterized" in chosen:
        total = total + doubly_reparameterized(particles, bound, chosen["doubly_reparameterized"])
    if "score" in chosen:
        total = total + score(particles, bound, chosen["score"])
    return total


def doubly_reparameterized(particles: Particles, bound: Bound, draws: list[Draws]) -> Tensor:
    """The control variate sum v log q(z fixed) - sum h (l through z), of zero mean."""
    upstream = _upstream(particles)
    direct = total = particles.zero
    for drawn in draws:
        if _is_shared(drawn, particles) and _has_sampled_log_q(drawn, particles):
            log_q = drawn.log_q(fixed=True, scaled=True).mean(0)
            direct = direct + drawn.weight * log_q.sum()
    for block in particles.cells:
        local = [d for d in draws if d.latent.name in block.latents]
        if local:
            slope, curvature = derivatives(bound, block.log_weights)
            for drawn in local:
                log_q = sum_except(drawn.log_q(fixed=True, scaled=True), block.plates.values())
                direct = direct + drawn.weight * (slope * log_q).sum()
            for generation, linear in _through_draws(block, curvature, local).items():
                before = [d for d in upstream if d.latent.generation < generation]
                total = total - block.weight * without(linear, _generations(before))
    return (total + without(direct, _generations(upstream))) / particles.num_outer


def _through_draws(block: CellBlock, curvature: Tensor, local: list[Draws]) -> dict[int, Tensor]:
    """sum h (l through z) with everything upstream of z live, by the generation of z.

    Each draw enters as (total derivative, detached) * z, so what is drawn later counts with it.
    """
    triples = [
        (drawn.latent.generation, z, scale * drawn.weight / block.weight)
        for drawn in local
        for z, scale in zip(drawn.values, drawn.scales(), strict=True)
        if z.requires_grad
    ]
    if not triples:
        return {}
    bent = (curvature * block.log_weights).sum()
    inputs = [z for _, z, _ in triples]
    grads = torch.autograd.grad(bent, inputs, retain_graph=True, allow_unused=True)
    linear: dict[int, Tensor] = {}
    for (generation, z, scale), grad in zip(triples, grads, strict=True):
        if grad is not None:
            term = (scale * grad * z).sum()
            linear[generation] = linear.get(generation, torch.zeros_like(bent)) + term
    return linear


def score(particles: Particles, bound: Bound, draws: list[Draws]) -> Tensor:
    """The score-function terms of the draws that are not differentiated."""
    total = particles.zero
    for drawn in draws:
        if _is_shared(drawn, particles):
            total = total + _shared_score(particles, bound, drawn)
    for block in particles.cells:
        local = [d for d in draws if d.latent.name in block.latents]
        if local:
            total = total + _local_score(particles, bound, block, local)
    return total


def through(total: Tensor, generations: list[list[Tensor]]) -> Tensor:
    """A scalar whose gradient is the part of `total`'s that flows through given tensors.

    Args:
        total: a scalar.
        generations: tensors in the graph of `total`, sorted so that none depends on a tensor of
            its own or of a later generation.

    Returns:
        sum of z * d total / dz over the tensors, with the derivatives detached; no path counts
        twice.

    Example:
        >>> x = torch.tensor(2.0, requires_grad=True)
        >>> z = 3 * x
        >>> torch.autograd.grad(through(x * z, [[z]]), x)  # d(x z) = z dx + x dz, second part
        (tensor(6.),)
    """
    grafted = torch.zeros_like(total)
    for tensors in reversed(generations):
        live = [z for z in tensors if z.requires_grad]
        rest = total - grafted
        if live and rest.requires_grad:
            grads = torch.autograd.grad(rest, live, retain_graph=True, allow_unused=True)
            for z, grad in zip(live, grads, strict=True):
                if grad is not None:
                    grafted = grafted + (grad * z).sum()
    return grafted


def without(total: Tensor, generations: list[list[Tensor]]) -> Tensor:
    """A scalar whose gradient is the part of `total`'s that avoids given tensors."""
    return total - through(total, generations)


def _automatic(latent: Latent, structure: Structure, layout: Layout) -> Choice:
    if not latent.reparameterized:
        return Choice("score", f"{latent.distribution} is not reparameterized")
    if not latent.evaluable:
        return Choice(
            "pathwise", f"log q of this {latent.distribution} is reliable only at its last draw"
        )
    if latent.name in layout.local:
        for other in _block(latent, structure, layout):
            if not other.reparameterized:
                return Choice("pathwise", f"its cells hold '{other.name}', which needs the score")
            if not other.evaluable:
                return Choice(
                    "pathwise", f"its cells hold '{other.name}', reliable only at its last draw"
                )
    return Choice("doubly_reparameterized", f"{latent.distribution} is reparameterized")


def _check_legal(latent: Latent, estimator: Estimator) -> None:
    found = None
    if not latent.reparameterized and estimator != "score":
        found = f"has the distribution {latent.distribution}, whose draws are not differentiable"
    elif not latent.evaluable and estimator != "pathwise":
        found = f"is a {latent.distribution} whose log-density is reliable only at its last draw"
    if found:
        raise ValueError(
            f"gradient={estimator!r} is illegal for latent '{latent.name}': it {found}. "
            "Use gradient='auto', which chooses an estimator for each site."
        )


def _block(latent: Latent, structure: Structure, layout: Layout) -> list[Latent]:
    cells = layout.cells[FactorKey("guide", latent.name)]
    return [
        other
        for name, other in structure.latents.items()
        if name in layout.local and layout.cells[FactorKey("guide", name)] == cells
    ]


def _is_shared(drawn: Draws, particles: Particles) -> bool:
    return drawn.latent.name not in particles.layout.local


def _upstream(particles: Particles) -> list[Draws]:
    read = {name for d in particles.draws.values() for name in d.latent.upstream}
    return [particles.draws[name] for name in particles.draws if name in read]


def _has_sampled_log_q(drawn: Draws, particles: Particles) -> bool:
    key = FactorKey("guide", drawn.latent.name)
    return any(f.key == key and f.monte_carlo for f in particles.shared)


def _generations(draws: list[Draws]) -> list[list[Tensor]]:
    generations: dict[int, list[Tensor]] = {}
    for drawn in draws:
        generations.setdefault(drawn.latent.generation, []).extend(drawn.values)
    return [generations[g] for g in sorted(generations)]


def _local_score(
    particles: Particles, bound: Bound, block: CellBlock, local: list[Draws]
) -> Tensor:
    log_weights = block.log_weights.detach()
    baseline, slope = leave_one_out(bound, log_weights)
    learning_signal = bound(log_weights) - baseline
    dims = block.plates.values()
    total = particles.zero
    for drawn in local:
        log_q = sum_except(drawn.log_q(), dims)
        scaled = drawn.weight / block.weight * sum_except(drawn.log_q(scaled=True), dims)
        total = total + (learning_signal * log_q + slope * scaled).sum()
    return block.weight * total / particles.num_outer


def _shared_score(particles: Particles, bound: Bound, drawn: Draws) -> Tensor:
    cost = _downstream_cost(particles, bound, drawn).detach()
    num_outer = particles.num_outer
    if num_outer > 1:
        cost = cost - (cost.sum(0) - cost) / (num_outer - 1)
    total = (cost * drawn.log_q().mean(0)).sum()
    if _has_sampled_log_q(drawn, particles):
        total = total + drawn.weight * drawn.log_q(scaled=True).mean(0).sum()
    return total / num_outer


def _downstream_cost(particles: Particles, bound: Bound, drawn: Draws) -> Tensor:
    """Sum of what depends on the draw, within its plates: (M, *plates)."""
    cost = particles.zero
    name = drawn.latent.name
    for factor in particles.shared:
        if name in factor.reads:
            cost = cost + factor.weight * _within(factor.value, factor.plates, drawn)
    for block in particles.cells:
        if name in block.reads:
            cost = cost + block.weight * _within(bound(block.log_weights), block.plates, drawn)
    return cost


def _within(tensor: Tensor, plates: Mapping[str, int], drawn: Draws) -> Tensor:
    """Sum (M, *plates) over the plates that the latent is not in."""
    outside = [dim for plate, dim in plates.items() if plate not in drawn.plates]
    return tensor.sum(outside, keepdim=True) if outside else tensor
