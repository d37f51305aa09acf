"""Run guide and model for all particles.

Model and guide run once per evaluation (once per particle if sequential). What the gradient
estimators need "with z held fixed" is derived from the same run by automatic differentiation (see
`gradients`), so that dropout masks, batch statistics and minibatches are those that made the draws.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_elbo_lab.objectives.expectations import Averages
from pyro_elbo_lab.objectives.particles.layout import Layout
from pyro_elbo_lab.objectives.particles.scored import Expectation, Particles, Run, Stack, sort
from pyro_elbo_lab.objectives.particles.sobol import Nets, Placement
from pyro_elbo_lab.programs.branches import Branch
from pyro_elbo_lab.programs.enumeration import Marginal, Site, is_enumerated, log_density
from pyro_elbo_lab.programs.pair import Pair, Program
from pyro_elbo_lab.programs.structure.analysis import Structure
from pyro_elbo_lab.programs.structure.factors import (
    PARTICLE_PLATE,
    FactorKey,
    difference,
    factors,
    is_random,
    is_subsample,
    signature,
)
from pyro_elbo_lab.programs.structure.recall import Recall, Values, aside, to_recall
from pyro_elbo_lab.programs.structure.runs import Again, first_enumerated_dim, run

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


@dataclass(frozen=True)
class Drawing:
    """How particles are drawn and scored.

    Every particle sees the same subsample of every plate, and the K inner particles of an outer
    one see the same shared latents.

    Attributes:
        structure: what is known of model and guide, from `structure.analyze`.
        layout: which sites have weights of their own, from `layout`.
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
        sobol: where scrambled Sobol points replace Gaussian noise, from `sobol.place`.
        branch: enumerate the guide's sites, those that are enumerated sequentially in this branch.
        expectations: exact expectations that replace log-densities.
        dice: latents whose score stands in the weights of an average, see `expectations`.
        scored: further sites of the guide whose score does.
    """

    structure: Structure
    layout: Layout
    num_inner: int = 1
    num_outer: int = 1
    vectorize: bool = False
    max_plate_nesting: int = 0
    sums: bool = False
    detached: frozenset[str] = frozenset()
    refreshed: frozenset[str] = frozenset()
    meet: Meet | None = None
    leaves: bool = False
    latent_scale: float | Tensor = 1.0
    sobol: Placement | None = None
    branch: Branch | None = None
    expectations: Mapping[FactorKey, Expectation] = field(default_factory=dict)
    dice: frozenset[str] = frozenset()
    scored: frozenset[str] = frozenset()

    @property
    def num(self) -> int:
        """The number of particles."""
        return self.num_inner * self.num_outer

    @property
    def at_once(self) -> bool:
        """Whether they have a plate of their own."""
        return self.vectorize and self.num > 1

    @property
    def nesting(self) -> int:
        """The dimensions that are left to the program's own plates."""
        return max(self.structure.max_plate_nesting, self.max_plate_nesting)

    @property
    def shared(self) -> frozenset[str]:
        """The latents that inner particles share."""
        if self.num_inner == 1:
            return frozenset()
        return frozenset(self.structure.latents.keys() - self.layout.local)

    @property
    def summed(self) -> bool:
        """Whether sites are summed out or averaged."""
        return bool(self.structure.enumerated) or self.sums or self.branch is not None

    @property
    def first_enumerated_dim(self) -> int | None:
        """Where they have their values, None if there are none."""
        return first_enumerated_dim(self.nesting, self.at_once) if self.summed else None


@contextmanager
def _naming_vectorization(num: int, nesting: int) -> Iterator[None]:
    """Add to an error of a program that was not written for vectorized particles what to do."""
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


def draw(pair: Pair, how: Drawing, given: Values | None = None) -> Particles:
    """Run guide and model for all particles and sort their log-densities into the layout.

    Args:
        pair: model and guide with their arguments.
        how: the particles are drawn.
        given: as for `run_particles`.

    Returns:
        The particles.

    Raises:
        StructureChangedError: the sites are not those of the structure.
        ValueError: a site's shape does not fit its plates; too many dimensions for Sobol points.
    """
    done = run_particles(pair, how, given)
    for one in done.runs:
        check_sites(one, how.structure)
    return sort_runs(done.runs, done.stack, how)


def check_sites(run: Run, structure: Structure) -> None:
    """Refuse a run with other sites than are known.

    Args:
        run: from `run_particles`.
        structure: what is known.

    Raises:
        StructureChangedError: there are others.
    """
    found = signature(run.sites)
    if found != structure.signature:
        raise StructureChangedError(
            "The sites of model and guide, or their plates, differ from run to run: "
            f"{difference(structure.signature, found)}. Here all runs must have the same: "
            "give every branch the same sample sites (poutine.mask switches one off)."
        )


def sort_runs(runs: tuple[Run, ...], stack: Stack, how: Drawing) -> Particles:
    """Sort the log-densities of runs that have the sites of the structure into the layout.

    Args:
        runs: from `run_particles`.
        stack: from `run_particles`.
        how: they are scored.
    """
    done = tuple(_summed(run, how) for run in runs)
    if how.expectations:
        done = tuple(
            replace(
                run,
                expected={
                    k: e.evaluate(run.sites[k], run.sites) for k, e in how.expectations.items()
                },
            )
            for run in done
        )
    return sort(done, how.structure, how.layout, stack, how.expectations)


def _summed(run: Run, how: Drawing) -> Run:
    """The run with the sums over its enumerated sites."""
    averages = None
    if how.structure.averaged or how.scored:
        averages = Averages(run.sites, how.structure, how.dice, how.scored)
    densities = {}
    for key, site in run.sites.items():
        if key in run.densities:
            densities[key] = run.densities[key]
        elif averages:
            densities[key] = averages.density(key)
        else:
            densities[key] = log_density(site, site["value"])
    return replace(run, densities=densities, averages=averages)


def run_particles(pair: Pair, how: Drawing, given: Values | None = None) -> Runs:
    """Run guide and model for all particles.

    Args:
        pair: model and guide with their arguments; the runs may have other sites than are known.
        how: the particles are drawn.
        given: values of latents of the guide that take the place of its draws, each with a leading
            dimension for the particles.

    Returns:
        The runs, whose sums over sites are still to be evaluated: by `sort_runs`.

    Raises:
        DeeperPlatesError: plates that leave no dimension to vectorized particles or sums.
        ValueError: too many dimensions for Sobol points.
    """
    given = given or {}
    shared = how.shared
    if how.vectorize and shared:
        _refuse_shared_flows(how.structure, shared)

    def once(tied: frozenset[str], fresh: frozenset[str], replaced: Values) -> tuple[Run, Values]:
        prepare = _Prepare(how, tied, fresh, replaced)
        unscaled = isinstance(how.latent_scale, float | int) and how.latent_scale == 1
        with nullcontext() if unscaled else _ScaleLatents(how.latent_scale, prepare.met):
            traces = run(pair, prepare, how.first_enumerated_dim, how.branch, inside)
        model_trace, guide_trace = traces
        sites = factors(model_trace, guide_trace)
        if how.at_once or how.summed:
            _check_nesting(sites, how.nesting)
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
    plate = _particle_plate(how.num, how.nesting) if how.at_once else None
    inside = plate if how.branch is not None else None
    around = plate if plate and not inside else nullcontext()
    nets = Nets(how.sobol, how.num_inner, how.num_outer)
    if how.vectorize:
        with nets.all_particles(), around, _naming_vectorization(how.num, how.nesting):
            runs.append(once(shared, how.refreshed, given)[0])
    else:
        earlier: dict[int, Values] = {}
        subsamples: Values = {}
        for particle in range(how.num):
            inner, outer = divmod(particle, how.num_outer)
            with nets.particle(particle), Recall(earlier[outer] if inner else subsamples):
                # what is recalled stays one tensor, so that no path through it counts twice
                fresh = how.refreshed - shared if inner else how.refreshed
                own = {name: value[particle] for name, value in given.items()}
                one, values = once(frozenset(), fresh, own)
            runs.append(one)
            earlier.setdefault(outer, values)
            subsamples |= {n: v for n, v in values.items() if n not in shared}
    stack = Stack(how.num_inner, how.num_outer, how.nesting, how.vectorize)
    return Runs(tuple(runs), stack)


def _particle_plate(num: int, nesting: int) -> Any:
    return pyro.plate(PARTICLE_PLATE, num, dim=-nesting - 1)


def repeat(pair: Pair, how: Drawing) -> Again:
    """What makes one more run as `run_particles` does, in all dimensions that it has there.

    Args:
        pair: model and guide with their arguments.
        how: the particles are drawn, with sites that are summed out.

    Returns:
        (model, handler that sees the guide's sites) -> traces of model and guide.
    """

    def again(model: Program, carry: Messenger) -> tuple[Any, Any]:
        plate = _particle_plate(how.num, how.nesting) if how.at_once else None
        watched = pair.with_programs(model)
        return run(watched, carry, how.first_enumerated_dim, how.branch, plate)

    return again


def _check_nesting(sites: Mapping[FactorKey, Site], nesting: int) -> None:
    frames = [f for site in sites.values() for f in site["cond_indep_stack"]]
    deepest = max((-f.dim for f in frames if f.vectorized and f.name != PARTICLE_PLATE), default=0)
    if deepest > nesting:
        raise DeeperPlatesError(deepest)


def sites_vary(pair: Pair) -> bool:
    """Whether some runs on the same subsamples have other sites than the first.

    Args:
        pair: model and guide with their arguments.
    """
    with aside(), torch.no_grad():
        first = run(pair)
        with Recall(to_recall(*first, ())):
            others = [run(pair) for _ in range(_PROBES)]
    return any(signature(factors(*t)) != signature(factors(*first)) for t in others)


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
        self, how: Drawing, tied: frozenset[str], refreshed: frozenset[str], given: Values
    ) -> None:
        super().__init__()
        self.how = how
        self.tied = tied
        self.refreshed = refreshed
        self.given = _Given(given, how.num if how.at_once else None, how.nesting)
        self.met: set[str] = set()

    def _pyro_sample(self, msg: Site) -> None:
        self.met.add(msg["name"])
        if msg["name"] in self.given.values:
            msg["value"] = self.given.value_of(msg)
            msg["done"] = True

    def _pyro_post_sample(self, msg: Site) -> None:
        name, value = msg["name"], msg["value"]
        how = self.how
        if name not in how.structure.latents:
            if how.meet and is_random(msg) and not is_subsample(msg):
                msg["value"] = _changed(value, how.meet(msg))
            return
        if name in self.tied:
            inner = value.reshape(how.num_inner, -1, *value.shape[1:])
            value = inner[:1].expand_as(inner).reshape(value.shape)
        if name in self.refreshed:
            value = value.view_as(value)
        if name in how.detached:
            value = value.detach()
        if how.leaves and value.is_floating_point():
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
