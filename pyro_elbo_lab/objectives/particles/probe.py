"""One particle looked at closely: does it score alone as it does among others, and are the cells of
its plates independent? Vectorized particles rest on the first, weights of cells on the second.
"""

import warnings
from functools import cached_property

import torch
from torch import Tensor

from pyro_elbo_lab.objectives.particles.layout import Layout, linear
from pyro_elbo_lab.objectives.particles.sampling import (
    Drawing,
    check_sites,
    draw,
    run_particles,
    sort_runs,
)
from pyro_elbo_lab.objectives.particles.scored import CellBlock, Particles, Run, Stack, sum_except
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.state import gradients_on
from pyro_elbo_lab.programs.structure.analysis import Analysis, analyze
from pyro_elbo_lab.programs.structure.factors import FactorKey
from pyro_elbo_lab.programs.structure.recall import Recall, Untraced, Values, aside

__all__ = ["Probe", "is_vectorizable", "probe"]

_CROWD, _PLACE = 7, 4
"""So many particles run at once, and this one is looked at: neither the first nor the last, which a
program that indexes from one end would get right."""
_TROUBLE = (RuntimeError, ValueError, IndexError, AssertionError)


class Probe:
    """One particle of a pair. Random states are afterwards as before.

    Args:
        pair: model and guide with their arguments.
        found: from `analyze`.
        crowded: draw it among others, so that `vectorizable` takes no run more than `touching`.

    Attributes:
        structure: the dependencies of model and guide.
        sites: of one run.
    """

    def __init__(self, pair: Pair, found: Analysis, crowded: bool = True) -> None:
        self.structure = found.structure
        self.sites = found.sites
        self._pair = pair
        self._found = found
        self._crowded = crowded
        self._runs: dict[bool, Run] = {}

    @cached_property
    def vectorizable(self) -> bool:
        """Whether particles that run at once score as they do one by one.

        A program that sums or indexes dimensions from the left may run in a particle plate and
        give wrong numbers. Here some particles are drawn at once, one of them is replayed alone,
        and its log-densities are compared, site by site. Any exception counts as a no, among them
        that of a flow that cannot be evaluated at a given value.
        """
        if self._crowd is None:
            return False
        try:
            alone = self._alone(linear(), leaves=True in self._runs)
        except _TROUBLE:
            return False
        pairs = zip(alone.shared, self._crowd[0].shared, strict=True)
        return all(
            torch.allclose(one.value[0].sum(), two.value[_PLACE].sum(), rtol=1e-3, atol=1e-3)
            for one, two in pairs
        )

    def touching(self, layout: Layout) -> str | None:
        """The name of a local latent on which log-densities of other cells depend, None if none.

        Names tell which sites depend on which, not which elements: a program may mix the elements
        of a plate (a Cholesky factor times whitened draws, say). It is found from the gradients of
        one draw, also where the caller has switched gradients off.

        Args:
            layout: the cells.

        Raises:
            ValueError: other sites than were found.
        """
        if not any(layout.cells.values()):
            return None
        with aside(), gradients_on():
            return _touching_cells(self._alone(layout, leaves=True))

    def _alone(self, layout: Layout, leaves: bool) -> Particles:
        if leaves not in self._runs:
            self._runs[leaves] = self._run(leaves)
        run = self._runs[leaves]
        check_sites(run, self.structure)
        stack = Stack(1, 1, self.structure.max_plate_nesting, vectorized=False)
        with aside(), torch.set_grad_enabled(leaves):
            return sort_runs((run,), stack, Drawing(self.structure, layout))

    def _run(self, leaves: bool) -> Run:
        values = self._found.recall
        if self._crowded and self._crowd is not None:
            values = values | self._crowd[1]
        how = Drawing(self.structure, linear(), leaves=leaves)
        with aside(Recall(values)), torch.set_grad_enabled(leaves):
            return run_particles(self._pair, how).runs[0]

    @cached_property
    def _crowd(self) -> tuple[Particles, Values] | None:
        """Particles drawn at once, and the draws of one of them; None if that is impossible."""
        how = Drawing(self.structure, linear(), num_outer=_CROWD, vectorize=True)
        try:
            recalled = aside(Recall(self._found.recall))
            with torch.inference_mode(False), torch.no_grad(), recalled, Untraced() as untraced:
                drawn = draw(self._pair, how)
            values = {
                name: untraced.values[name][_PLACE].reshape(value.shape)
                for name, value in self._found.untraced.items()
            }
            for name in self.structure.latents:
                key = FactorKey("guide", name)
                value = drawn.runs[0].sites[key]["value"][_PLACE]
                values[name] = value.reshape(self.sites[key]["value"].shape)
        except _TROUBLE:
            return None
        return drawn, values


def probe(pair: Pair) -> Probe:
    """What is known of a pair: ask by `pair.once(probe)`, so that it is worked out once.

    Args:
        pair: model and guide with their arguments.

    Raises:
        ValueError: a guide that does not fit the model.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        ...     pyro.sample("x", dist.Normal(z[0], 1.0), obs=torch.tensor(1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        >>> Pair(model, guide).once(probe).vectorizable  # z[..., 0] would be
        False
    """
    return Probe(pair, analyze(pair))


def is_vectorizable(pair: Pair) -> bool:
    """Whether particles that run at once score as they do one by one; see `Probe.vectorizable`.

    Args:
        pair: model and guide with their arguments; a guide may have sites that the model has not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # who asks has heard them
        return Probe(pair, analyze(pair, lenient=True)).vectorizable


def _touching_cells(particles: Particles) -> str | None:
    """If the cells are independent, weighting each cell's log-density by u multiplies the gradient
    in the cell by u and nothing else. Model and guide are looked at one by one, as they cancel
    where the guide is the posterior."""
    for block in particles.cells:
        for side in ("model", "guide"):
            log_density = _of_cells(particles, block, side)
            for name in block.latents:
                drawn = particles.draws[name]
                if _touches(log_density, drawn.values[0], drawn.sites[0]["fn"].event_dim):
                    return name
    return None


def _of_cells(particles: Particles, block: CellBlock, side: str) -> Tensor:
    """The log-density of one side in each cell, (1, 1, *plates)."""
    (one,) = particles.runs
    stack = Stack(1, 1, block.log_weights.dim() - 2, vectorized=False)
    cells = frozenset(block.plates)
    total = torch.zeros_like(block.log_weights)
    for key, around in particles.layout.cells.items():
        if key.side == side and around == cells:
            total = total + sum_except(stack([one.densities[key]]), block.plates.values())
    return total


def _touches(log_density: Tensor, z: Tensor, event_dim: int) -> bool:
    if not (z.requires_grad and log_density.requires_grad):
        return False
    u = 1 + torch.rand_like(log_density)
    plain, weighted = (
        torch.autograd.grad(total, z, retain_graph=True, allow_unused=True)[0]
        for total in (log_density.sum(), (u * log_density).sum())
    )
    if plain is None:
        return False
    own = u.reshape(u.shape[2:] + (1,) * event_dim)
    return bool((weighted - own * plain).abs().max() > 1e-3 * plain.abs().max())
