"""Draws of a guide, scored: values of the model's sites, log p and log q of each draw."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_elbo_lab.objectives.particles.layout import linear
from pyro_elbo_lab.objectives.particles.probe import probe
from pyro_elbo_lab.objectives.particles.sampling import Drawing, draw
from pyro_elbo_lab.objectives.particles.scored import Particles
from pyro_elbo_lab.objectives.particles.sobol import Placement
from pyro_elbo_lab.programs.dims import has_value, is_deterministic
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.structure.analysis import Structure
from pyro_elbo_lab.programs.structure.recall import aside
from pyro_elbo_lab.programs.structure.runs import first_enumerated_dim, run

__all__ = ["GuideDraws", "guide_draws"]


@dataclass(frozen=True)
class GuideDraws:
    """Independent draws of a guide, differentiable in its parameters unless gradients are off.

    Attributes:
        trace: of the model, run once: shapes and plates of its sites.
        structure: the dependencies of model and guide.
        particles: the draws, scored.
        vectorize: whether they were drawn at once.
        names: of the latent and deterministic sites that have one value a draw.
        summed_out: of those that do not, as discrete sites are summed out.
    """

    trace: Trace
    structure: Structure
    particles: Particles
    vectorize: bool
    names: tuple[str, ...]
    summed_out: tuple[str, ...]

    def values(self, name: str) -> Tensor:
        """Draws of one site of the model, (draw, *shape)."""
        particles, shape = self.particles, self.trace.nodes[name]["value"].shape
        values: list[Any] = [run.model_trace.nodes[name]["value"] for run in particles.runs]
        num = particles.num_outer
        if len(values) == num:
            return torch.stack([value.reshape(shape) for value in values])
        (value,) = values  # all draws at once; a site that reads no latent lacks their dimension
        if value.numel() == shape.numel() and num > 1:
            return value.reshape(shape).expand(num, *shape)
        return value.reshape(num, *shape)

    def log_density(self, side: str) -> Tensor:
        """log p(x, z) of side "model", log q(z) of side "guide", (draw,), in nats."""
        particles = self.particles
        total = particles.zero.expand(particles.num_outer)
        for factor in particles.shared:
            if factor.key.side == side:
                total = total + factor.weight * factor.value.reshape(particles.num_outer, -1).sum(1)
        return total if side == "model" else -total


def guide_draws(pair: Pair, num_samples: int, sobol: Placement | None = None) -> GuideDraws:
    """Draw from a guide and score the draws, all at once where model and guide allow it.

    Args:
        pair: model and guide with their arguments.
        num_samples: how many draws.
        sobol: where Sobol points replace Gaussian noise, from `particles.sobol`.

    Raises:
        ValueError: a guide that does not fit the model.
    """
    known = pair.once(probe)
    structure = known.structure
    with aside(), torch.no_grad():
        trace, _ = run(pair)
    how = Drawing(
        structure, linear(), num_outer=num_samples, vectorize=known.vectorizable, sobol=sobol
    )
    particles = draw(pair, how)
    sites = {name: site for name, site in trace.nodes.items() if has_value(site)}
    drawn = {n: s for n, s in sites.items() if not s["is_observed"] or is_deterministic(s)}
    summed = _summed_out(pair, structure, drawn)
    names = tuple(name for name in drawn if name not in summed)
    return GuideDraws(trace, structure, particles, how.vectorize, names, summed)


def _summed_out(pair: Pair, structure: Structure, drawn: Mapping[str, Any]) -> tuple[str, ...]:
    """The model's sites that get a dimension of their own where discrete sites are summed."""
    if not structure.enumerated:
        return ()
    first_dim = first_enumerated_dim(structure.max_plate_nesting)
    with aside(), torch.no_grad():
        trace, _ = run(pair, first_enumerated_dim=first_dim)
    values = {name: trace.nodes[name]["value"] for name in drawn}
    changed = [n for n, v in values.items() if v.numel() != drawn[n]["value"].numel()]
    return tuple(n for n in drawn if n in changed or n in structure.enumerated)
