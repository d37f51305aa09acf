"""The ELBO with exact expectations where they exist.

E_q[log p(x, z) - log q(z)] is a sum over sites. For a latent z of the guide the terms
E_q[log p(z | parents)] and -E_q[log q(z)] can often be written down. Per latent we take the
strongest that is legal:

1. exact KL: both, from KL(q || p) and the entropy H(q), as -(KL + H) + H;
2. exact entropy: -E[log q] = H(q), and log p by Monte Carlo;
3. Monte Carlo for both.

Writing the model's and the guide's share apart lets each keep its own scale and mask.

A latent that a branch of the program may depend on, itself or by what the guide draws from it, has
route 3: the average over its values would take in those that lead to other branches.

Route 1 fixes the model's parents of z while it averages over z. That is legal unless a parent of z
in the model was drawn, in the guide, depending on z.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_elbo_lab.objectives.bounds import mean
from pyro_elbo_lab.objectives.objective import Objective
from pyro_elbo_lab.objectives.particles.scored import Expectation
from pyro_elbo_lab.objectives.plans import Route
from pyro_elbo_lab.programs.dims import delta
from pyro_elbo_lab.programs.enumeration import Site
from pyro_elbo_lab.programs.structure.analysis import Latent, Structure
from pyro_elbo_lab.programs.structure.factors import FactorKey

Sites = Mapping[FactorKey, Site]


def AnalyticKLELBO(num_particles: int = 1, **pyro_keywords: Any) -> Objective:
    """The evidence lower bound with exact KL and entropy terms where they are legal.

    Its expectation is that of `StandardELBO`. It takes the noise of a latent's own KL term away,
    which helps most early on and with wide guides; near the optimum the Monte Carlo terms of
    `StandardELBO` cancel each other, and its gradient can be the less noisy one. `explain` tells
    which term got which route, and why not a stronger one.

    Args:
        num_particles: draws that are averaged, at least 1.
        pyro_keywords: those of `pyro.infer.ELBO`, such as `vectorize_particles`.

    Returns:
        A loss for `pyro.infer.SVI`.

    Raises:
        ValueError: fewer than one particle.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, equation 7; Kucukelbir et al.
        (2017), Automatic differentiation variational inference (exact entropy).

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(1.0, 1.0))
        >>> AnalyticKLELBO().loss(model, guide)  # KL(N(1, 1) || N(0, 1)) = 1/2, at every draw
        0.5
    """
    return Objective(
        "AnalyticKLELBO", mean, num_outer=num_particles, find_routes=find_routes, **pyro_keywords
    )


def find_routes(structure: Structure, sites: Sites) -> dict[str, Route]:
    """The strongest legal route of every latent of the guide.

    Args:
        structure: dependencies of model and guide.
        sites: the sites of one run.
    """
    return {name: _route(latent, structure, sites) for name, latent in structure.latents.items()}


def _route(latent: Latent, structure: Structure, sites: Sites) -> Route:
    guide_key = FactorKey("guide", latent.name)
    for name in sorted(structure.escaped):
        if latent.name in {name, *structure.latents[name].upstream}:
            return Route("Monte Carlo", f"branches of the program may depend on '{name}'")
    if not _implemented(lambda: sites[guide_key]["fn"].entropy()):
        return Route("Monte Carlo", f"{latent.distribution} has no exact entropy")
    by_entropy = {guide_key: Expectation(latent.name, _negative_entropy)}
    model_key, reason = _partner(latent, structure, sites)
    if model_key is None:
        return Route("exact entropy", reason, by_entropy)

    def cross_entropy(model_site: Site, sites: Sites) -> Tensor:
        q, p = _broadcast(sites[guide_key]["fn"], model_site["fn"])
        return -(kl_divergence(q, p) + q.entropy())

    prior = type(sites[model_key]["fn"]).__name__
    if not _implemented(lambda: cross_entropy(sites[model_key], sites)):
        reason = f"no exact KL({latent.distribution} || {prior})"
        return Route("exact entropy", reason, by_entropy)
    return Route("exact KL", "", {**by_entropy, model_key: Expectation(latent.name, cross_entropy)})


def _partner(latent: Latent, structure: Structure, sites: Sites) -> tuple[FactorKey | None, str]:
    """The site of the model whose value is the latent's draw itself, if an exact KL is legal."""
    name = _site_in_model(latent, structure, sites)
    if name is None:
        return None, "the model sees a transformation of it"
    if FactorKey("model", name) not in sites:
        return None, f"in the model the sum over discrete sites takes in the prior of '{name}'"
    for parent in sorted(structure.parents[name] - {latent.name}):
        if latent.name in structure.latents[parent].upstream:
            return None, (
                f"in the model '{name}' depends on '{parent}', which the guide draws depending on "
                f"'{latent.name}'"
            )
    if latent.name in structure.parents[name]:
        return None, f"in the model '{name}' depends on what the guide makes of '{latent.name}'"
    return FactorKey("model", name), ""


def _site_in_model(latent: Latent, structure: Structure, sites: Sites) -> str | None:
    if latent.name in structure.parents:
        return latent.name
    draw = sites[FactorKey("guide", latent.name)]["value"]
    for key, site in sites.items():
        point = delta(site["fn"]) if key.side == "guide" else None
        if point is not None and key.name in structure.parents and _same(point.v, draw):
            return key.name
    return None


def _same(value: Tensor, draw: Tensor) -> bool:
    """Whether two tensors are one: equal numbers might come from a clipped or rectified draw."""
    return value.shape == draw.shape and value.numel() > 0 and value.data_ptr() == draw.data_ptr()


def _broadcast(q: Any, p: Any) -> tuple[Any, Any]:
    """Both with one batch shape, which some registered KL divergences take for granted."""
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    return q.expand(shape), p.expand(shape)


def _negative_entropy(site: Site, sites: Sites) -> Tensor:
    return -site["fn"].entropy()


def _implemented(evaluate: Any) -> bool:
    try:
        with torch.no_grad():
            evaluate()
    except NotImplementedError:
        return False
    return True
