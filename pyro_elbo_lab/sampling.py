"""Run guide and model for all particles.

Model and guide run once per evaluation (once per particle if sequential). What the gradient
estimators need "with z held fixed" is derived from the same run by automatic differentiation (see
`gradients`), so that dropout masks, batch statistics and minibatches are those that made the draws.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_elbo_lab.branches import Branch
from pyro_elbo_lab.enumeration import log_density
from pyro_elbo_lab.expectations import Averages
from pyro_elbo_lab.layout import Layout, linear
from pyro_elbo_lab.particles import (
    CellBlock,
    Expectation,
    Particles,
    Run,
    Stack,
    sort,
    sum_except,
)
from pyro_elbo_lab.quasirandom import Nets, Placement
from pyro_elbo_lab.structure import (
    PARTICLE_PLATE,
    FactorKey,
    Program,
    Site,
    Structure,
    analyse,
    aside,
    factors,
    first_enumerated_dim,
    is_subsample,
    run,
    signature,
)

Values = dict[str, Tensor]


class StructureChangedError(Exception):
    """The program has other sites than the structure that it was run with."""


@contextmanager
def _naming_vectorization(num: int) -> Iterator[None]:
    """Add to an error of a program that was not written for vectorised particles what to do."""
    try:
        yield
    except RuntimeError as error:  # PyTorch's about shapes
        if num > 1:
            error.add_note(
                f"{num} particles ran at once (vectorize_particles=True), so that all latents have "
                "a dimension more on the left. A program that cannot have it, such as nn.Linear "
                "with random weights, needs vectorize_particles=False."
            )
        raise


def draw(
    model: Program,
    guide: Program,
    args: tuple,
    kwargs: dict,
    *,
    structure: Structure,
    layout: Layout,
    num_inner: int = 1,
    num_outer: int = 1,
    vectorize: bool = False,
    max_plate_nesting: int = 0,
    detached: frozenset[str] = frozenset(),
    refreshed: frozenset[str] = frozenset(),
    leaves: bool = False,
    latent_scale: float | Tensor = 1.0,
    expectations: Mapping[FactorKey, Expectation] | None = None,
    sobol: Placement | None = None,
    given: Values | None = None,
    branch: Branch | None = None,
    dice: frozenset[str] = frozenset(),
    scored: frozenset[str] = frozenset(),
) -> Particles:
    """Run guide and model for all particles and sort their log-densities into the layout.

    Every particle sees the same subsample of every plate, and the K inner particles of an outer
    one see the same shared latents.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        structure: their dependencies, from `structure.analyse`.
        layout: from `layout`.
        num_inner: K.
        num_outer: M.
        vectorize: run all particles at once in an outermost plate.
        max_plate_nesting: at least this many dimensions are left to the program's own plates.
        detached: latents whose draws are cut from the graph (score-function estimator).
        refreshed: latents whose draws are passed on as new tensors, so that a flow evaluates
            log q through its inverse and not from its cache.
        leaves: make every draw a leaf of the graph, so that factors depend on each other through
            nothing but their own latents.
        latent_scale: multiplies log q and the log p of latents, as a user's own scale would.
        expectations: exact expectations that replace log-densities.
        sobol: where scrambled Sobol points replace Gaussian noise, from `quasirandom.place`.
        given: values of latents of the guide that take the place of its draws, each with a leading
            dimension for the particles.
        branch: enumerate the guide's sites, those that are enumerated sequentially in this branch.
        dice: latents whose score stands in the weights of an average, see `expectations`.
        scored: further sites of the guide whose score does.

    Returns:
        The particles.

    Raises:
        StructureChangedError: the sites are not those of `structure`.
        ValueError: a site's shape does not fit its plates; too many dimensions for Sobol points.
    """
    num = num_inner * num_outer
    nesting = max(structure.max_plate_nesting, max_plate_nesting)
    shared = frozenset(structure.latents.keys() - layout.local) if num_inner > 1 else frozenset()

    enumerates = structure.enumerated or structure.averaged
    enumerate_from = first_enumerated_dim(nesting) if enumerates else None
    summed = frozenset(structure.enumerated)
    expectations, given = expectations or {}, given or {}
    if vectorize and shared:
        _refuse_shared_flows(structure, shared)

    def once(tied: frozenset[str], fresh: frozenset[str], replaced: Values) -> tuple[Run, Values]:
        latents = frozenset(structure.latents)
        given_to = _Given(replaced, num if vectorize and num > 1 else None, nesting)
        prepare = _Prepare(latents, tied, num_inner, detached, fresh, leaves, given_to)
        unscaled = isinstance(latent_scale, float | int) and latent_scale == 1
        with nullcontext() if unscaled else _ScaleLatents(latent_scale, summed):
            traces = run(model, guide, args, kwargs, prepare, enumerate_from, branch, inside)
        model_trace, guide_trace = traces
        sites = factors(model_trace, guide_trace)
        if signature(sites) != structure.signature:
            raise StructureChangedError
        averages = None
        if structure.averaged or scored:
            averages = Averages(sites, structure, dice, scored)
            densities = {key: averages.density(key) for key in sites}
        else:
            densities = {key: log_density(site, site["value"]) for key, site in sites.items()}
        expected = {k: e.evaluate(sites[k], sites) for k, e in expectations.items()}
        values = _to_recall(model_trace, guide_trace, shared)
        return Run(sites, densities, expected, model_trace, averages), values

    runs = []
    plate = None
    if vectorize and num > 1:
        plate = pyro.plate(PARTICLE_PLATE, num, dim=-nesting - 1)
    inside = plate if structure.averaged else None
    around = plate if plate and not inside else nullcontext()
    nets = Nets(sobol, num_inner, num_outer)
    if vectorize:
        with nets.all_particles(), around, _naming_vectorization(num):
            runs.append(once(shared, refreshed, given)[0])
    else:
        earlier: dict[int, Values] = {}
        subsamples: Values = {}
        for particle in range(num):
            inner, outer = divmod(particle, num_outer)
            with nets.particle(particle), Recall(earlier[outer] if inner else subsamples):
                # what is recalled stays one tensor, so that no path through it counts twice
                fresh = refreshed - shared if inner else refreshed
                own = {name: value[particle] for name, value in given.items()}
                one, values = once(frozenset(), fresh, own)
            runs.append(one)
            earlier.setdefault(outer, values)
            subsamples = {n: v for n, v in earlier[0].items() if n not in shared}
    stack = Stack(num_inner, num_outer, nesting, vectorize)
    return sort(tuple(runs), structure, layout, stack, expectations)


def is_vectorizable(model: Program, guide: Program, args: tuple, kwargs: dict) -> bool:
    """Whether two particles at once score as they do one after the other.

    A program that sums or indexes dimensions from the left may run in a particle plate and give
    wrong numbers. Here two particles are drawn at once, replayed one by one, and their
    log-densities compared, site by site. Any exception counts as a no, among them that of a flow
    that cannot be evaluated at a given value.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
    """
    with aside(), torch.no_grad():
        structure, single = analyse(model, guide, args, kwargs)
        options: dict[str, Any] = {"structure": structure, "layout": linear()}
        try:
            both = draw(model, guide, args, kwargs, num_outer=2, vectorize=True, **options)
        except (RuntimeError, ValueError, IndexError, AssertionError):
            return False
        for i in range(2):
            trace = both.runs[0].model_trace
            values = _to_recall(trace, trace, frozenset())
            for name in structure.latents:
                key = FactorKey("guide", name)
                values[name] = (
                    both.runs[0].sites[key]["value"][i].reshape(single[key]["value"].shape)
                )
            with Recall(values):
                alone = draw(model, guide, args, kwargs, **options)
            for one, two in zip(alone.shared, both.shared, strict=True):
                if not torch.allclose(one.value[0].sum(), two.value[i].sum(), rtol=1e-3, atol=1e-3):
                    return False
    return True


def touching_cells(particles: Particles) -> str | None:
    """The name of a local latent on which log-densities of other cells depend, None if none.

    Names tell which sites depend on which, not which elements: a program may mix the elements of
    a plate (a Cholesky factor times whitened draws, say). If the cells are independent, weighting
    each cell's log-density by u multiplies the gradient in the cell by u and nothing else. Model
    and guide are looked at one by one, as they cancel where the guide is the posterior.

    Args:
        particles: drawn with K = M = 1, not vectorised, `leaves=True`.
    """
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


def _refuse_shared_flows(structure: Structure, shared: frozenset[str]) -> None:
    for name in sorted(shared):
        if not structure.latents[name].evaluable:
            raise ValueError(
                f"Latent '{name}' is a {structure.latents[name].distribution} whose log-density is "
                "known only at its last draw, and all inner particles must share it. Use "
                "vectorize_particles=False, or a flow with an inverse."
            )


@dataclass(frozen=True)
class _Given:
    """Values that take the place of draws.

    Attributes:
        values: by latent; with a leading dimension of `num` particles, unless that is None.
        num: the number of particles that run at once.
        nesting: the number of dimensions to the right of the particle plate.
    """

    values: Values
    num: int | None
    nesting: int

    def value_of(self, site: Site) -> Tensor:
        """In the shape that the program expects, which does not know of the particles."""
        value, batch = self.values[site["name"]], site["fn"].batch_shape
        if self.num is not None:  # it may know of the particles through another given value
            batch = batch[max(0, len(batch) - self.nesting) :]
        lead = () if self.num is None else (self.num, *[1] * (self.nesting - len(batch)))
        shape = (*lead, *batch, *site["fn"].event_shape)
        if value.numel() != math.prod(shape):
            raise ValueError(
                f"Latent '{site['name']}' was given a value of shape {tuple(value.shape)}, "
                f"expected {shape} or a reshaping of it. Given draws are those of all data: they "
                "do not go together with a subsampled plate."
            )
        return value.reshape(shape)


class _Prepare(Messenger):
    """Changes a latent's draw before model, guide and trace go on with it."""

    def __init__(
        self,
        latents: frozenset[str],
        tied: frozenset[str],
        num_inner: int,
        detached: frozenset[str],
        refreshed: frozenset[str],
        leaves: bool,
        given: _Given,
    ) -> None:
        super().__init__()
        self.latents = latents
        self.given = given
        self.tied = tied
        self.num_inner = num_inner
        self.detached = detached
        self.refreshed = refreshed
        self.leaves = leaves

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.given.values:
            msg["value"] = self.given.value_of(msg)
            msg["done"] = True

    def _pyro_post_sample(self, msg: Site) -> None:
        name, value = msg["name"], msg["value"]
        if name not in self.latents:
            return
        if name in self.tied:
            inner = value.reshape(self.num_inner, -1, *value.shape[1:])
            value = inner[:1].expand_as(inner).reshape(value.shape)
        if name in self.refreshed:
            value = value.view_as(value)
        if name in self.detached:
            value = value.detach()
        if self.leaves and value.is_floating_point():
            value = value.detach().requires_grad_()
        msg["value"] = value


class _ScaleLatents(Messenger):
    """Multiplies the scale of all sites but the model's observations and what is summed out, which
    is a part of their density."""

    def __init__(self, scale: float | Tensor, summed: frozenset[str]) -> None:
        super().__init__()
        self.scale = scale
        self.summed = summed

    def _pyro_sample(self, msg: Site) -> None:
        if not msg["is_observed"] and msg["name"] not in self.summed:
            msg["scale"] = self.scale * msg["scale"]


class Recall(Messenger):
    """Gives sites the values of an earlier run. Unlike `poutine.replay` it leaves a site's `infer`
    alone, where a GuideMessenger keeps the prior of this run."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["done"] = True
            msg["value"] = self.values[msg["name"]]


def _to_recall(model_trace: Trace, guide_trace: Trace, latents: frozenset[str]) -> Values:
    """The subsamples of all plates, and the draws of the named latents."""
    sites = [*model_trace.nodes.items(), *guide_trace.nodes.items()]
    values = {name: site["value"] for name, site in sites if is_subsample(site)}
    return values | {name: guide_trace.nodes[name]["value"] for name in latents}
