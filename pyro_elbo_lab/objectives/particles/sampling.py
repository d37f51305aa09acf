"""Run guide and model for all particles.

Model and guide run once per evaluation (once per particle if sequential). What the gradient
estimators need "with z held fixed" is derived from the same run by automatic differentiation (see
`gradients`), so that dropout masks, batch statistics and minibatches are those that made the draws.
"""

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_elbo_lab.objectives.expectations import Averages
from pyro_elbo_lab.objectives.particles.layout import Layout, linear
from pyro_elbo_lab.objectives.particles.scored import (
    CellBlock,
    Expectation,
    Particles,
    Run,
    Stack,
    sort,
    sum_except,
)
from pyro_elbo_lab.objectives.particles.sobol import Nets, Placement
from pyro_elbo_lab.programs.branches import Branch
from pyro_elbo_lab.programs.enumeration import Marginal, is_enumerated, log_density
from pyro_elbo_lab.programs.structure import (
    PARTICLE_PLATE,
    Again,
    FactorKey,
    Program,
    Recall,
    Site,
    Structure,
    Values,
    analyse,
    aside,
    difference,
    factors,
    first_enumerated_dim,
    is_random,
    is_subsample,
    run,
    signature,
    to_recall,
)

_PROBES = 8
Meet = Callable[[Site], Literal["detached", "refreshed", ""]]


class StructureChangedError(ValueError):
    """The program has other sites than the structure that it was run with."""


class DeeperPlatesError(StructureChangedError):
    """A run has more nested plates than dimensions were left to it.

    Attributes:
        nesting: the dimensions that its plates take.
    """

    def __init__(self, nesting: int) -> None:
        super().__init__(
            f"The plates of one run take {nesting} dimensions, more than those of an earlier run: "
            f"pass max_plate_nesting={nesting}."
        )
        self.nesting = nesting


@dataclass(frozen=True)
class Runs:
    """Runs of all particles, each perhaps with sites of its own.

    Attributes:
        runs: one if all particles run at once, else one for each, those of the first inner
            particle first.
        stack: gives densities of all runs the shape (K, M, *plates).
    """

    runs: tuple[Run, ...]
    stack: Stack


@contextmanager
def _naming_vectorization(num: int, nesting: int) -> Iterator[None]:
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
    except ValueError as error:
        if "collide" in str(error) and PARTICLE_PLATE in str(error):
            raise DeeperPlatesError(nesting + 1) from error
        raise


def draw(
    model: Program,
    guide: Program,
    args: tuple,
    kwargs: dict,
    *,
    structure: Structure,
    layout: Layout,
    expectations: Mapping[FactorKey, Expectation] | None = None,
    dice: frozenset[str] = frozenset(),
    scored: frozenset[str] = frozenset(),
    **options: Any,
) -> Particles:
    """Run guide and model for all particles and sort their log-densities into the layout.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        structure: their dependencies, from `structure.analyse`.
        layout: from `layout`.
        expectations: exact expectations that replace log-densities.
        dice: as for `sort_runs`.
        scored: as for `sort_runs`.
        options: those of `run_particles`.

    Returns:
        The particles.

    Raises:
        StructureChangedError: the sites are not those of `structure`.
        ValueError: a site's shape does not fit its plates; too many dimensions for Sobol points.
    """
    done = run_particles(model, guide, args, kwargs, structure=structure, layout=layout, **options)
    for one in done.runs:
        found = signature(one.sites)
        if found != structure.signature:
            raise StructureChangedError(
                "The sites of model and guide, or their plates, differ from run to run: "
                f"{difference(structure.signature, found)}. Here all runs must have the same: "
                "give every branch the same sample sites (poutine.mask switches one off)."
            )
    return sort_runs(done.runs, structure, layout, done.stack, expectations or {}, dice, scored)


def sort_runs(
    runs: tuple[Run, ...],
    structure: Structure,
    layout: Layout,
    stack: Stack,
    expectations: Mapping[FactorKey, Expectation],
    dice: frozenset[str] = frozenset(),
    scored: frozenset[str] = frozenset(),
) -> Particles:
    """Sort the log-densities of runs that have the sites of `structure` into the layout.

    Args:
        runs: from `run_particles`.
        structure: their dependencies, from `structure.analyse`.
        layout: from `layout`.
        stack: from `run_particles`.
        expectations: exact expectations that replace log-densities.
        dice: latents whose score stands in the weights of an average, see `expectations`.
        scored: further sites of the guide whose score does.
    """
    done = tuple(_summed(run, structure, dice, scored) for run in runs)
    if expectations:
        done = tuple(
            replace(
                run,
                expected={k: e.evaluate(run.sites[k], run.sites) for k, e in expectations.items()},
            )
            for run in done
        )
    return sort(done, structure, layout, stack, expectations)


def _summed(run: Run, structure: Structure, dice: frozenset[str], scored: frozenset[str]) -> Run:
    """The run with the sums over its enumerated sites."""
    averages = None
    if structure.averaged or scored:
        averages = Averages(run.sites, structure, dice, scored)
    densities = {}
    for key, site in run.sites.items():
        if key in run.densities:
            densities[key] = run.densities[key]
        elif averages:
            densities[key] = averages.density(key)
        else:
            densities[key] = log_density(site, site["value"])
    return replace(run, densities=densities, averages=averages)


def run_particles(
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
    sums: bool = False,
    detached: frozenset[str] = frozenset(),
    refreshed: frozenset[str] = frozenset(),
    meet: Meet | None = None,
    leaves: bool = False,
    latent_scale: float | Tensor = 1.0,
    sobol: Placement | None = None,
    given: Values | None = None,
    branch: Branch | None = None,
) -> Runs:
    """Run guide and model for all particles.

    Every particle sees the same subsample of every plate, and the K inner particles of an outer
    one see the same shared latents.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        structure: what is known of them; the runs may have other sites.
        layout: from `layout`.
        num_inner: K.
        num_outer: M.
        vectorize: run all particles at once in an outermost plate.
        max_plate_nesting: at least this many dimensions are left to the program's own plates.
        sums: sum out sites that ask for it even if `structure` has none.
        detached: latents whose draws are cut from the graph (score-function estimator).
        refreshed: latents whose draws are passed on as new tensors, so that a flow evaluates
            log q through its inverse and not from its cache.
        meet: which of the two a latent is that `structure` does not have.
        leaves: make every draw a leaf of the graph, so that factors depend on each other through
            nothing but their own latents.
        latent_scale: multiplies log q and the log p of latents, as a user's own scale would.
        sobol: where scrambled Sobol points replace Gaussian noise, from `quasirandom.place`.
        given: values of latents of the guide that take the place of its draws, each with a leading
            dimension for the particles.
        branch: enumerate the guide's sites, those that are enumerated sequentially in this branch.

    Returns:
        The runs, whose sums over sites are still to be evaluated: by `sort_runs`.

    Raises:
        DeeperPlatesError: plates that leave no dimension to vectorised particles or sums.
        ValueError: too many dimensions for Sobol points.
    """
    num = num_inner * num_outer
    nesting = max(structure.max_plate_nesting, max_plate_nesting)
    shared = frozenset(structure.latents.keys() - layout.local) if num_inner > 1 else frozenset()

    at_once = vectorize and num > 1
    summed = bool(structure.enumerated) or sums or branch is not None
    enumerate_from = first_enumerated_dim(nesting, at_once) if summed else None
    given = given or {}
    if vectorize and shared:
        _refuse_shared_flows(structure, shared)

    def once(tied: frozenset[str], fresh: frozenset[str], replaced: Values) -> tuple[Run, Values]:
        latents = frozenset(structure.latents)
        given_to = _Given(replaced, num if at_once else None, nesting)
        prepare = _Prepare(latents, tied, num_inner, detached, fresh, meet, leaves, given_to)
        unscaled = isinstance(latent_scale, float | int) and latent_scale == 1
        with nullcontext() if unscaled else _ScaleLatents(latent_scale, prepare.met):
            traces = run(model, guide, args, kwargs, prepare, enumerate_from, branch, inside)
        model_trace, guide_trace = traces
        sites = factors(model_trace, guide_trace)
        if at_once or summed:
            _check_nesting(sites, nesting)
        densities = {
            key: log_density(site, site["value"])
            for key, site in sites.items()
            if not isinstance(site["fn"], Marginal)
        }
        subsamples = to_recall(model_trace, guide_trace, ())
        drawn = guide_trace.nodes
        values = subsamples | {name: drawn[name]["value"] for name in shared if name in drawn}
        return Run(sites, densities, {}, model_trace, subsamples), values

    runs = []
    plate = _particle_plate(num, nesting) if at_once else None
    inside = plate if branch is not None else None
    around = plate if plate and not inside else nullcontext()
    nets = Nets(sobol, num_inner, num_outer)
    if vectorize:
        with nets.all_particles(), around, _naming_vectorization(num, nesting):
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
            subsamples |= {n: v for n, v in values.items() if n not in shared}
    return Runs(tuple(runs), Stack(num_inner, num_outer, nesting, vectorize))


def _particle_plate(num: int, nesting: int) -> Any:
    return pyro.plate(PARTICLE_PLATE, num, dim=-nesting - 1)


def repeat(
    guide: Program,
    args: tuple,
    kwargs: dict,
    *,
    num: int,
    vectorize: bool,
    nesting: int,
    branch: Branch | None,
) -> Again:
    """What makes one more run as `run_particles` does, in all dimensions that it has there.

    Args:
        guide: a Pyro guide.
        args: positional arguments of model and guide.
        kwargs: keyword arguments of both.
        num: the number of particles.
        vectorize: run them at once.
        nesting: the dimensions of the program's own plates.
        branch: as for `run_particles`.

    Returns:
        (model, handler that sees the guide's sites) -> traces of model and guide.
    """
    at_once = vectorize and num > 1
    first_dim = first_enumerated_dim(nesting, at_once)

    def again(model: Program, carry: Messenger) -> tuple[Any, Any]:
        plate = _particle_plate(num, nesting) if at_once else None
        return run(model, guide, args, kwargs, carry, first_dim, branch, plate)

    return again


def _check_nesting(sites: Mapping[FactorKey, Site], nesting: int) -> None:
    frames = [f for site in sites.values() for f in site["cond_indep_stack"]]
    deepest = max((-f.dim for f in frames if f.vectorized and f.name != PARTICLE_PLATE), default=0)
    if deepest > nesting:
        raise DeeperPlatesError(deepest)


def sites_vary(model: Program, guide: Program, args: tuple, kwargs: dict) -> bool:
    """Whether some runs on the same subsamples have other sites than the first.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
    """
    with aside(), torch.no_grad():
        first = run(model, guide, args, kwargs)
        with Recall(to_recall(*first, ())):
            others = [run(model, guide, args, kwargs) for _ in range(_PROBES)]
    return any(signature(factors(*t)) != signature(factors(*first)) for t in others)


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
        with _Untraced() as untraced:
            subsamples = to_recall(*run(model, guide, args, kwargs), ())
        shapes = {name: value.shape for name, value in untraced.values.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # who asks has heard them
            structure, single = analyse(model, guide, args, kwargs, subsamples, lenient=True)
        options: dict[str, Any] = {"structure": structure, "layout": linear()}
        try:
            with Recall(subsamples), _Untraced() as untraced:
                both = draw(model, guide, args, kwargs, num_outer=2, vectorize=True, **options)
        except (RuntimeError, ValueError, IndexError, AssertionError):
            return False
        for i in range(2):
            values = dict(subsamples)
            for name, shape in shapes.items():
                values[name] = untraced.values[name][i].reshape(shape)
            for name in structure.latents:
                key = FactorKey("guide", name)
                values[name] = (
                    both.runs[0].sites[key]["value"][i].reshape(single[key]["value"].shape)
                )
            try:
                with Recall(values):
                    alone = draw(model, guide, args, kwargs, **options)
            except StructureChangedError:
                return False
            for one, two in zip(alone.shared, both.shared, strict=True):
                if not torch.allclose(one.value[0].sum(), two.value[i].sum(), rtol=1e-3, atol=1e-3):
                    return False
    return True


class _Untraced(Messenger):
    """Notes draws that Pyro puts into no trace, such as those of a ConjugateReparam."""

    def __init__(self) -> None:
        super().__init__()
        self.values: Values = {}

    def _pyro_post_sample(self, msg: Site) -> None:
        if (msg["infer"] or {}).get("_do_not_trace") and not msg["is_observed"]:
            self.values[msg["name"]] = msg["value"]


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
    """Changes a latent's draw before model, guide and trace go on with it.

    Attributes:
        met: the names of the guide's sites so far.
    """

    def __init__(
        self,
        latents: frozenset[str],
        tied: frozenset[str],
        num_inner: int,
        detached: frozenset[str],
        refreshed: frozenset[str],
        meet: Meet | None,
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
        self.meet = meet
        self.leaves = leaves
        self.met: set[str] = set()

    def _pyro_sample(self, msg: Site) -> None:
        self.met.add(msg["name"])
        if msg["name"] in self.given.values:
            msg["value"] = self.given.value_of(msg)
            msg["done"] = True

    def _pyro_post_sample(self, msg: Site) -> None:
        name, value = msg["name"], msg["value"]
        if name not in self.latents:
            if self.meet and is_random(msg) and not is_subsample(msg):
                msg["value"] = _changed(value, self.meet(msg))
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


def _changed(value: Tensor, how: str) -> Tensor:
    if how == "detached":
        return value.detach()
    return value.view_as(value) if how == "refreshed" else value


class _ScaleLatents(Messenger):
    """Multiplies the scale of all sites but the model's observations and what is summed out, which
    is a part of their density: what is enumerated and not among the guide's sites."""

    def __init__(self, scale: float | Tensor, guided: Collection[str]) -> None:
        super().__init__()
        self.scale = scale
        self.guided = guided

    def _pyro_sample(self, msg: Site) -> None:
        if not msg["is_observed"] and (msg["name"] in self.guided or not is_enumerated(msg)):
            msg["scale"] = self.scale * msg["scale"]
