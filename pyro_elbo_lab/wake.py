"""Objectives whose guide does not follow the gradient of the bound.

With v = dV/dl, normalised importance weights where V is the importance-weighted bound:

* *wake* adds sum v d log q(z fixed) for the guide to sum v d log p(z fixed) for the model. It fits
  the guide by KL(p || q) and needs no differentiable draws (Bornschein and Bengio 2015).
* *doubly reparameterized wake* has the same expectation, written as sum h (dl through z)
  (Tucker, Lawson, Gu and Maddison 2019).
* *partial* gives the model one bound and the guide another (Rainforth et al. 2018, PIWAE).

Every latent must stand inside a weight: the first two are zero on average for a latent that all
particles share.
"""

from functools import partial

from torch import Tensor

from pyro_elbo_lab.bounds import derivatives, log_mean_exp
from pyro_elbo_lab.gradients import (
    UNBIASED,
    Choice,
    Choices,
    Gradient,
    Method,
    by_estimator,
    choose,
    coupled,
    doubly_reparameterized,
    generations,
    obstacle_among,
    surrogate,
)
from pyro_elbo_lab.layout import Layout
from pyro_elbo_lab.particles import CellBlock, Draws, Particles, sum_except
from pyro_elbo_lab.paths import without
from pyro_elbo_lab.structure import Structure
from pyro_elbo_lab.target import Target, value


def _choose_wake(
    structure: Structure, layout: Layout, gradient: Gradient, target: Target
) -> dict[str, Choice]:
    choices: dict[str, Choice] = {}
    for name, latent in structure.latents.items():
        obstacle = obstacle_among([latent, *coupled(latent, structure, layout, target)])
        if gradient == "doubly_reparameterized" and obstacle:
            raise ValueError(
                f"gradient='doubly_reparameterized' is illegal for latent '{name}': its weights "
                f"hold {obstacle}. Use gradient='wake', or 'auto'."
            )
        if gradient == "wake" or obstacle:
            reason = f"its weights hold {obstacle}" if obstacle else "asked for"
            choices[name] = Choice("wake", reason)
        else:
            reason = f"{latent.distribution} is reparameterized"
            choices[name] = Choice("doubly_reparameterized_wake", reason)
    return choices


def _wake(particles: Particles, target: Target, choices: Choices, share: float) -> Tensor:
    chosen = by_estimator(particles, choices)
    total = value(particles, target)
    # the draws are cut from the graph: the value's own gradient has -v log q
    total = total + (1 + share) * _weighted_log_q(particles, chosen.get("wake", []))
    if "doubly_reparameterized_wake" in chosen:
        draws = chosen["doubly_reparameterized_wake"]
        total = total + doubly_reparameterized(particles, target, draws, wake=True)
    return total


def _weighted_log_q(particles: Particles, draws: list[Draws]) -> Tensor:
    """sum v log q with the normalised importance weights v."""
    total = particles.zero
    for block in particles.cells:
        for drawn in draws:
            if drawn.latent.name in block.latents:
                weights, _ = derivatives(log_mean_exp, block.log_weights)
                log_q = sum_except(drawn.log_q(scaled=True), block.plates.values())
                total = total + drawn.weight * (weights * log_q).sum() / particles.num_outer
    return total


def wake(share: float = 1.0) -> Method:
    """The wake phase of model and guide.

    Args:
        share: of the wake phase in the guide's learning; the rest is left to a sleep phase. Below
            1 only the plain estimator is taken.
    """
    if share < 1:
        return Method(("auto", "wake"), _choose_plain_wake, partial(_wake, share=share))
    gradients: tuple[Gradient, ...] = ("auto", "wake", "doubly_reparameterized")
    return Method(gradients, _choose_wake, partial(_wake, share=share))


def _choose_plain_wake(
    structure: Structure, layout: Layout, gradient: Gradient, target: Target
) -> dict[str, Choice]:
    return _choose_wake(structure, layout, "wake", target)


def _guide_only(particles: Particles, target: Target, choices: Choices) -> Tensor:
    return _weighted_log_q(particles, by_estimator(particles, choices)["wake"])


def _check_evaluable(structure: Structure, but: str) -> None:
    for latent in structure.latents.values():
        if not latent.evaluable:
            raise ValueError(
                f"Latent '{latent.name}' is a {latent.distribution} whose log-density is reliable "
                f"only at its own last draw, {but}."
            )


def _choose_given(
    structure: Structure, layout: Layout, gradient: Gradient, target: Target
) -> dict[str, Choice]:
    _check_evaluable(structure, "not at draws from elsewhere. Use another guide")
    return dict.fromkeys(structure.latents, Choice("wake", "its draws are given"))


def _log_q_at_given(particles: Particles, target: Target, choices: Choices) -> Tensor:
    total = particles.zero
    for drawn in particles.draws.values():
        total = total + drawn.weight * drawn.log_q(scaled=True).mean(0).sum()
    return total / particles.num_outer


GUIDE_AT_GIVEN = Method(("auto",), _choose_given, _log_q_at_given)
"""The log-density of the guide at draws from elsewhere."""

GUIDE_ONLY = Method(("auto", "wake"), _choose_plain_wake, _guide_only)
"""The wake phase of the guide alone."""


def _choose_partial(
    structure: Structure, layout: Layout, gradient: Gradient, target: Target
) -> dict[str, Choice]:
    _check_evaluable(structure, "but two bounds need it twice. Use ImportanceWeightedELBO")
    return choose(structure, layout, gradient, target)


def _partial(particles: Particles, target: Target, choices: Choices) -> Tensor:
    everything = list(particles.draws.values())
    linear = direct = particles.zero
    for block in particles.cells:
        difference = _slope_of_all(block) - _slope_of_mean(block)
        linear = linear + block.weight * (difference * block.log_weights).sum()
        for drawn in everything:
            if drawn.latent.name in block.latents:
                log_q = sum_except(drawn.log_q(fixed=True, scaled=True), block.plates.values())
                direct = direct + drawn.weight * (difference * log_q).sum()
    fixed = generations(everything)
    return surrogate(particles, target, choices) + without(linear + direct, fixed)


def _slope_of_all(block: CellBlock) -> Tensor:
    """Of the importance-weighted bound of all K M particles in the log-weights."""
    slope, _ = derivatives(log_mean_exp, block.log_weights.flatten(0, 1))
    return slope.reshape(block.log_weights.shape)


def _slope_of_mean(block: CellBlock) -> Tensor:
    """Of the mean over M of importance-weighted bounds of K particles."""
    slope, _ = derivatives(log_mean_exp, block.log_weights)
    return slope / block.log_weights.shape[1]


def _choose_reparameterized(
    structure: Structure, layout: Layout, gradient: Gradient, target: Target
) -> dict[str, Choice]:
    obstacle = obstacle_among(list(structure.latents.values()))
    if obstacle:
        raise ValueError(
            f"This objective follows its weights along differentiable draws, but has {obstacle}. "
            "Use ReweightedWakeSleep, which needs no such draws."
        )
    return dict.fromkeys(structure.latents, Choice("doubly_reparameterized", "the only estimator"))


def _choose_pathwise(
    structure: Structure, layout: Layout, gradient: Gradient, target: Target
) -> dict[str, Choice]:
    return dict.fromkeys(structure.latents, Choice("pathwise", "the only estimator"))


PATHWISE = Method(("auto",), _choose_pathwise, surrogate)
"""The derivative of the value."""

REPARAMETERIZED = Method(("auto",), _choose_reparameterized, surrogate)
"""The doubly reparameterized gradient and nothing else."""

PARTIAL = Method(UNBIASED.gradients, _choose_partial, _partial)
"""The joint bound of all particles for the model, the outer mean for the guide."""
