"""Objectives whose guide does not follow the gradient of their value.

The guide gets sum f_k d log q(z_k fixed), where f = dG/dl is the slope of a bound G:

* With the importance-weighted bound as G, f are the normalized weights. This is the *wake phase* of
  the guide, which fits it by KL(p || q) (Bornschein and Bengio 2015).
* With (n - 1) / n times the chi bound as G it is the gradient of that bound in the limit of many
  particles. The gradient of the *estimate* log mean_k w_k^n / n would be another: K = 1 makes the
  estimate the ELBO, and who minimizes it for few particles drives the guide away from the
  posterior, to where no draw has weight.

It needs no differentiable draws. Where there are some, the *doubly reparameterized* form
sum f'_k (dl through z_k) has the same expectation, and vanishes for every draw at the posterior
(Tucker, Lawson, Gu and Maddison 2019). Every latent must stand inside a weight: for one that all
particles share, the sum is zero on average.

*Partial* gives the model one bound and the guide another (Rainforth et al. 2018, PIWAE).
"""

from functools import partial

from torch import Tensor

from pyro_elbo_lab.objectives.bounds import Bound, derivatives, log_mean_exp
from pyro_elbo_lab.objectives.gradients.paths import without
from pyro_elbo_lab.objectives.gradients.unbiased import (
    UNBIASED,
    Choice,
    Choices,
    Gradient,
    Method,
    avoiding,
    by_estimator,
    choose,
    coupled,
    generations,
    obstacle_among,
    surrogate,
    through_draws,
    upstream_of,
)
from pyro_elbo_lab.objectives.particles.layout import Layout
from pyro_elbo_lab.objectives.particles.scored import CellBlock, Draws, Particles, sum_except
from pyro_elbo_lab.objectives.target import Target, value
from pyro_elbo_lab.programs.structure.analysis import Structure

GRADIENTS: tuple[Gradient, ...] = ("auto", "wake", "doubly_reparameterized")


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


def _guide_part(particles: Particles, choices: Choices, potential: Bound) -> Tensor:
    """sum f log q(z fixed), or sum f' (l through z)."""
    chosen = by_estimator(particles, choices)
    upstream = upstream_of(particles)
    total = particles.zero
    for block in particles.cells:
        slope, curvature = derivatives(potential, block.log_weights)
        for drawn in _among(chosen.get("wake", []), block):
            log_q = sum_except(drawn.log_q(scaled=True), block.plates.values())
            total = total + drawn.weight * (slope * log_q).sum()
        bent = (curvature * block.log_weights).sum()
        draws = _among(chosen.get("doubly_reparameterized_wake", []), block)
        linear = through_draws(bent, block.weight, draws)
        total = total + block.weight * avoiding(upstream, linear, particles.zero)
    return total / particles.num_outer


def _model_part(particles: Particles, target: Target, choices: Choices) -> Tensor:
    """The value at fixed draws and without the guide's own density."""
    everything = list(particles.draws.values())
    total = value(particles, target)
    for block in particles.cells:
        slope, _ = derivatives(target.inner, block.log_weights)
        for drawn in _among(everything, block):
            # draws of the plain estimator are cut from the graph already
            fixed = choices[drawn.latent.name].estimator != "wake"
            log_q = sum_except(drawn.log_q(fixed=fixed, scaled=True), block.plates.values())
            total = total + drawn.weight * (slope * log_q).sum() / particles.num_outer
    return without(total, generations(everything))


def _among(draws: list[Draws], block: CellBlock) -> list[Draws]:
    return [drawn for drawn in draws if drawn.latent.name in block.latents]


def _wake(particles: Particles, target: Target, choices: Choices, share: float) -> Tensor:
    guide = _guide_part(particles, choices, log_mean_exp)
    return _model_part(particles, target, choices) + share * guide


def wake(share: float = 1.0) -> Method:
    """The wake phase of model and guide.

    Args:
        share: of the wake phase in the guide's learning; the rest is left to a sleep phase.
    """
    return Method(GRADIENTS, _choose_wake, partial(_wake, share=share))


def guide_only(potential: Bound) -> Method:
    """sum f d log q for the guide, nothing for the model.

    Args:
        potential: G, whose slope is f.
    """
    return Method(GRADIENTS, _choose_wake, partial(_guide_only, potential=potential))


def _guide_only(particles: Particles, target: Target, choices: Choices, potential: Bound) -> Tensor:
    return _guide_part(particles, choices, potential)


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
    """The slope of the importance-weighted bound of all K M particles in the log-weights."""
    slope, _ = derivatives(log_mean_exp, block.log_weights.flatten(0, 1))
    return slope.reshape(block.log_weights.shape)


def _slope_of_mean(block: CellBlock) -> Tensor:
    """The slope of the mean over M of importance-weighted bounds of K particles."""
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
