"""The ELBO in its parts: what fitting the data brings, and what the guide's certainty costs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_elbo_lab.objectives.particles.guide_draws import guide_draws
from pyro_elbo_lab.objectives.particles.scored import Factor, Particles
from pyro_elbo_lab.programs.arguments import check_count, check_programs
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.state import forget_namesakes, seeded
from pyro_elbo_lab.programs.structure.analysis import Structure

__all__ = ["Decomposition", "Term", "decompose"]


class Term(NamedTuple):
    """A mean over draws of the guide, in nats, and its standard error."""

    value: float
    se: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.se:.3f}"


@dataclass(frozen=True)
class Decomposition:
    """What `decompose` found, in nats. All terms are means over the same draws.

    Attributes:
        elbo: E_q[log p(x, z) - log q(z)].
        log_joint: E_q[log p(x, z)].
        entropy: H[q] = -E_q[log q(z)].
        log_likelihood: E_q[log p(x | z)].
        kl: KL(q || p(z)) = E_q[log q(z) - log p(z)], from the guide to the prior.
        num_samples: the number of draws.
    """

    elbo: Term
    log_joint: Term
    entropy: Term
    log_likelihood: Term
    kl: Term
    num_samples: int

    def __str__(self) -> str:
        return (
            f"ELBO {self.elbo} = log joint {self.log_joint} + entropy {self.entropy} "
            f"= log likelihood {self.log_likelihood} - KL {self.kl} nats"
        )


def decompose(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    seed: int = 0,
    **kwargs: Any,
) -> Decomposition:
    """Split the ELBO into its parts, in both ways:

        ELBO = E_q[log p(x, z)] + H[q] = E_q[log p(x | z)] - KL(q || p(z)).

    The first is energy and entropy: put the guide where the joint density is high, but stay spread
    out. The second is benefit and cost: explain the data, but pay for each nat by which the guide
    departs from the prior. All are Monte Carlo means over the same draws, so that both equations
    hold to rounding, and the noise of the parts may be much larger than that of their sum.

    Prior is what the model says of the latents that the guide draws; likelihood is the rest:
    observations, `pyro.factor`, and sums over enumerated discrete sites, which are exact. Scales
    and masks count as they do in `StandardELBO`, and so do the auxiliary latents of a guide, whose
    entropy is that of all its sites. All draws see one subsample of a plate: its terms are scaled
    up, and the standard errors do not contain what another subsample would change.

    Args:
        model: a Pyro model; its parameters are as they are.
        guide: a Pyro guide.
        args: positional arguments of both.
        num_samples: draws of the guide, at least 2.
        seed: of the draws. The random state outside is left as it was.
        kwargs: keyword arguments of both.

    Returns:
        The terms with their standard errors.

    Raises:
        ValueError: fewer than two draws; a guide that does not fit the model, or sets a latent to a
            single value; a log-density that is NaN or infinite; a latent of the guide whose prior
            is summed together with the likelihood.

    References:
        Jordan, Ghahramani, Jaakkola and Saul (1999), An introduction to variational methods for
        graphical models; Hoffman and Johnson (2016), ELBO surgery.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(0.5, 0.5**0.5))  # the posterior at x = 1
        >>> parts = decompose(model, guide, torch.tensor(1.0), num_samples=10_000)
        >>> print(parts.elbo)  # log p(x) = -1.5155, at every draw
        -1.516 ± 0.000
        >>> print(parts.kl)  # 0.2216
        0.217 ± 0.005
    """
    check_programs(model=model, guide=guide)
    check_count("num_samples", num_samples, least=2)
    forget_namesakes(guide)
    with seeded(seed), torch.no_grad():
        drawn = guide_draws(Pair(model, guide, args, kwargs), num_samples)
    _refuse_points(drawn.structure)
    _refuse_mixed_sums(drawn.structure)
    return _terms(drawn.particles)


def _terms(particles: Particles) -> Decomposition:
    zero = torch.zeros(particles.num_outer, dtype=torch.float64)
    sums = dict.fromkeys(("prior", "likelihood", "guide"), zero)
    for factor in particles.shared:
        part = _part(factor, particles.structure)
        sums[part] = sums[part] + _per_draw(factor, particles.num_outer)
    prior, likelihood, minus_log_q = sums["prior"], sums["likelihood"], sums["guide"]
    return Decomposition(
        elbo=_mean(likelihood + prior + minus_log_q),
        log_joint=_mean(likelihood + prior),
        entropy=_mean(minus_log_q),
        log_likelihood=_mean(likelihood),
        kl=_mean(-(prior + minus_log_q)),
        num_samples=particles.num_outer,
    )


def _part(factor: Factor, structure: Structure) -> str:
    if factor.key.side == "guide":
        return "guide"
    is_prior = factor.key.name in structure.parents and factor.key not in structure.sums
    return "prior" if is_prior else "likelihood"


def _per_draw(factor: Factor, num_draws: int) -> Tensor:
    """+log p or -log q of every draw, summed over plates, (S,)."""
    values = factor.weight * factor.value.double().reshape(num_draws, -1).sum(1)
    if not values.isfinite().all():
        wrong = int((~values.isfinite()).sum())
        raise ValueError(
            f"Site '{factor.key.name}' of the {factor.key.side} has a log-density that is not "
            f"finite at {wrong} of {num_draws} draws, so that the ELBO is -inf or undefined. A "
            "guide must put its draws inside the model's support, where all densities are positive."
        )
    return values.cpu()


def _mean(values: Tensor) -> Term:
    return Term(float(values.mean()), float(values.std()) / math.sqrt(len(values)))


def _refuse_points(structure: Structure) -> None:
    if structure.points:
        raise ValueError(
            f"The guide sets {list(structure.points)} to single values (AutoDelta, a Delta site), "
            "whose entropy is -inf: the ELBO has no parts. Use a guide that draws at random."
        )


def _refuse_mixed_sums(structure: Structure) -> None:
    """Where the prior of a latent depends on a site that is summed out, p(x | z) is no factor."""
    for names in structure.sums.values():
        mixed = [n for n in names if n in structure.parents and n not in structure.enumerated]
        if mixed:
            summed = [name for name in names if name in structure.enumerated]
            raise ValueError(
                f"The prior of {mixed} depends on {summed}, which the model sums out together with "
                "the likelihood, so that prior and likelihood cannot be told apart. Draw "
                f"{summed} in the guide, or use `evidence` for the ELBO as a whole."
            )
