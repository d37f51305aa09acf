"""Differentiable annealed importance sampling: a guide whose draws move on to the posterior.

A draw z_0 of the guide goes through T leapfrog steps, each under a density between the guide and
the posterior, f_t(z) = log q(z) + b_t (log p(x, z) - log q(z)) with b_t = t / T, with a momentum v
that is partly drawn anew after every step:

    z <- z + e/2 v;   v' <- v + r(e grad f_t(z));   z <- z + e/2 v';
    v <- c v' + sqrt(1 - c^2) noise

As no step is accepted or rejected, everything is differentiable, and the log-weight of the path,

    log p(x, z_T) - log q(z_0) + sum_t [ log N(v'_t | 0, I) - log N(v_{t-1} | 0, I) ],

has an expectation below log p(x) for any step size e and persistence c. Both are learnt. The limit
r(k) = k / sqrt(1 + (k / 3)^2) of a kick keeps paths finite where gradients grow faster than
linearly. The weight needs no correction for it, as kicks of any kind keep volumes.
"""

from functools import partial
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_elbo_lab.objectives.bounds import log_mean_exp, mean
from pyro_elbo_lab.objectives.gradients.wake import PATHWISE
from pyro_elbo_lab.objectives.objective import Objective
from pyro_elbo_lab.objectives.particles.scored import Factor, Particles, stacked_values
from pyro_elbo_lab.objectives.settings import Draw
from pyro_elbo_lab.programs.arguments import choice, integer
from pyro_elbo_lab.programs.dims import subsampled_plate
from pyro_elbo_lab.programs.pair import Program
from pyro_elbo_lab.programs.structure.analysis import Structure
from pyro_elbo_lab.programs.structure.factors import FactorKey

Point = dict[str, Tensor]
PREFIX = "annealed_"
FIRST_STEP = 0.02
"""Small beside a posterior; training lengthens steps faster than it repairs paths that break."""

LARGEST_KICK = 3.0
"""In standard deviations of the momentum."""


def AnnealedELBO(num_particles: int = 1, num_steps: int = 8, **keywords: Any) -> Objective:
    """The ELBO of a guide followed by T steps of differentiable annealed importance sampling.

    Much tighter than the ELBO of the same guide, at the cost of T more gradients of the model, and
    for real latents only: guides that Pyro derives are fit, as they draw in unconstrained space.
    Fit the guide with `StandardELBO` first, and go on with this: far from the posterior a path says
    little about where it should have begun. The fitted guide alone is where paths start, not where
    they end: use it through this bound, or as the proposal of an importance sampler. The step size
    of every latent ("annealed_step_" + its name) and the persistence of the momentum
    ("annealed_persistence") are learnt in the param store.

    Args:
        num_particles: paths that are averaged, at least 1.
        num_steps: T, at least 1.
        keywords: those of `Objective` and of `pyro.infer.ELBO`. With `outer="importance"` the paths
            are importance-weighted.

    Returns:
        A loss for `pyro.infer.SVI`, in nats: a lower bound of log p(x). Its gradient is pathwise.

    Raises:
        ValueError: when used, a latent that is not real or not reparameterized, or a subsampled
            plate, as steps on a minibatch are no steps towards the posterior.

    References:
        Geffner and Domke (2021), MCMC variational inference via uncorrected Hamiltonian annealing;
        Zhang, Hsu, Li, Finn and Grosse (2021), Differentiable annealed importance sampling and the
        perils of gradient noise.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
        >>> def guide():  # ELBO -1.9189
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> step = pyro.param("annealed_step_z", torch.tensor(0.3), dist.constraints.positive)
        >>> pyro.set_rng_seed(0)
        >>> objective = AnnealedELBO(1000, num_steps=8, vectorize_particles=True)
        >>> -objective.loss(model, guide) > -1.9189 + 0.05
        True
    """
    integer("AnnealedELBO: num_steps", num_steps, least=1)
    outer = keywords.pop("outer", "mean")
    choice("AnnealedELBO: outer", outer, ("mean", "importance"))
    return Objective(
        f"AnnealedELBO({num_steps} steps)",
        mean,
        outer=log_mean_exp if outer == "importance" else mean,
        num_outer=num_particles,
        method=PATHWISE,
        source=partial(_paths, num_steps=num_steps),
        **keywords,
    )


def _paths(draw: Draw, structure: Structure, guide: Program, num_steps: int) -> Particles:
    """Particles at the ends of their paths, with one factor: the log-weight of the path."""
    _check(structure)
    particles = draw()
    _check_real_and_full(particles)
    num = particles.num_outer
    z = {name: stacked_values(drawn, num) for name, drawn in particles.draws.items()}
    log_p, log_q = _sides(particles)
    weight = -log_q
    persistence = pyro.param(
        f"{PREFIX}persistence", lambda: log_p.new_tensor(0.9), constraint=constraints.unit_interval
    )
    steps = {name: _step_size(name, value) for name, value in z.items()}
    v = {name: torch.randn_like(value) for name, value in z.items()}
    for t in range(1, num_steps + 1):
        z = _drift(z, v, steps)
        kicked = _kick(draw, z, v, steps, t / num_steps)
        weight = weight + _kinetic(v, num) - _kinetic(kicked, num)
        z = _drift(z, kicked, steps)
        v = {
            name: persistence * value + (1 - persistence**2).sqrt() * torch.randn_like(value)
            for name, value in kicked.items()
        }
    end = draw(given=z)
    path = Factor(
        key=FactorKey("model", "path"),
        value=weight + _sides(end)[0],
        weight=1.0,
        plates={},
        reads=frozenset(structure.latents),
        monte_carlo=True,
    )
    return Particles(structure, end.layout, (path,), (), end.draws, end.runs)


def _step_size(name: str, value: Tensor) -> Tensor:
    """One for every element of a latent, without the particles."""
    return pyro.param(
        f"{PREFIX}step_{name}",
        lambda: torch.full_like(value[0].detach(), FIRST_STEP),
        constraint=constraints.positive,
    )


def _drift(z: Point, v: Point, steps: Point) -> Point:
    return {name: value + steps[name] / 2 * v[name] for name, value in z.items()}


def _kick(draw: Draw, z: Point, v: Point, steps: Point, temperature: float) -> Point:
    with torch.enable_grad():
        z = {
            name: value if value.requires_grad else value.requires_grad_()
            for name, value in z.items()
        }
        log_p, log_q = _sides(draw(given=z))
        between = (temperature * log_p + (1 - temperature) * log_q).sum()
        grads = torch.autograd.grad(between, list(z.values()), create_graph=True)
    pairs = zip(v.items(), grads, strict=True)
    return {name: value + _limited(steps[name] * grad) for (name, value), grad in pairs}


def _limited(kick: Tensor) -> Tensor:
    return kick / (1 + (kick / LARGEST_KICK) ** 2).sqrt()


def _kinetic(v: Point, num: int) -> Tensor:
    """-log N(v | 0, I) up to a constant, (M,)."""
    total = next(iter(v.values())).new_zeros(num)
    for value in v.values():
        total = total + (value**2).reshape(num, -1).sum(1) / 2
    return total


def _sides(particles: Particles) -> tuple[Tensor, Tensor]:
    """log p(x, z) as a density of the latents that the guide draws, and log q(z), each (M,).

    What a guide derives from its draws, the Jacobian of a transformation say, is part of the first.
    """
    num = particles.num_outer
    log_p = log_q = particles.zero.expand(num)
    for factor in particles.shared:
        total = factor.value.reshape(num, -1).sum(1)
        if factor.key.side == "guide" and factor.key.name in particles.draws:
            log_q = log_q - total
        else:
            log_p = log_p + total
    return log_p, log_q


def _check(structure: Structure) -> None:
    if not structure.latents:
        raise ValueError("AnnealedELBO moves the guide's draws, but the guide has no latents.")
    for latent in structure.latents.values():
        if not (latent.reparameterized and latent.evaluable):
            raise ValueError(
                f"AnnealedELBO moves latents along gradients, but '{latent.name}' is drawn from "
                f"a {latent.distribution} that is not differentiable or cannot be evaluated at a "
                "new point. Mark a discrete site of the model infer={'enumerate': 'parallel'} and "
                "leave it out of the guide, or use another objective."
            )


def _check_real_and_full(particles: Particles) -> None:
    for name, drawn in particles.draws.items():
        site = drawn.sites[0]
        support = getattr(site["fn"], "support", None)
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if support is not constraints.real and support is not constraints.real_vector:
            raise ValueError(
                f"AnnealedELBO moves latents freely, but the support of '{name}' in the guide is "
                f"{support}. Draw in unconstrained space, as Pyro's autoguides do."
            )
    plate = subsampled_plate(particles.runs[0].sites.values())
    if plate:
        raise ValueError(
            f"AnnealedELBO follows gradients of all data, but plate '{plate.name}' is "
            f"subsampled ({plate.size} of {plate.full_size}). Use all data, or another "
            "objective."
        )
