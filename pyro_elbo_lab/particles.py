"""Draw particles from a guide and score them under model and guide.

The result keeps the plate structure: shared factors, and cells with log-weights of their own (see
`layout`). All tensors have the shape (K, M, *plates): K inner and M outer particles, then one
dimension for every nested plate, of size 1 where a site is not in the plate.

Model and guide run once per evaluation. What the estimators need "with z held fixed" is derived
from the same run by automatic differentiation (see `gradients`), so that dropout masks, batch
statistics and minibatches are those that made the draws.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_elbo_lab.layout import Cells, Layout
from pyro_elbo_lab.structure import (
    PARTICLE_PLATE,
    FactorKey,
    Latent,
    Program,
    Site,
    Structure,
    analyse,
    aside,
    factors,
    is_subsample,
    run,
    signature,
)

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Expectation:
    """An exact expectation over one latent that takes the place of a factor's log-density.

    Attributes:
        latent: the latent that is averaged over.
        evaluate: (site, all sites) -> expected log-density, unscaled, (*batch).
    """

    latent: str
    evaluate: Callable[[Site, Mapping[FactorKey, Site]], Tensor]


class StructureChangedError(Exception):
    """The program has other sites than the structure that it was run with."""


@dataclass(frozen=True)
class Factor:
    """One shared log-density, with its sign in the log-weight.

    Attributes:
        key: side and name of the site.
        value: +log p or -log q with the user's scale and mask, (M, *plates).
        weight: the subsample weight, a product of full size over subsample size.
        plates: the dimension of each of its plates.
        reads: the latents on which it depends.
        monte_carlo: False where an exact expectation stands in for the log-density.
    """

    key: FactorKey
    value: Tensor
    weight: float
    plates: Mapping[str, int]
    reads: frozenset[str]
    monte_carlo: bool


@dataclass(frozen=True)
class CellBlock:
    """All cells of one set of plates.

    Attributes:
        log_weights: (K, M, *plates), of size 1 in the plates that are not cells.
        weight: the subsample weight of every cell, which stands outside the bound.
        plates: the dimension of each plate whose indices are the cells.
        reads: the latents on which the log-weights depend.
        latents: the latents drawn afresh in each cell and for each of the K particles.
    """

    log_weights: Tensor
    weight: float
    plates: Mapping[str, int]
    reads: frozenset[str]
    latents: tuple[str, ...]


@dataclass(frozen=True)
class Draws:
    """The draws of one latent.

    Attributes:
        latent: what is known of it.
        values: the tensors that model and guide went on with.
        weight: the subsample weight.
        plates: the dimension of each of its plates.
        sites: its site in every run of the guide.
        stack: gives the densities of all runs the shape (K, M, *plates).
    """

    latent: Latent
    values: tuple[Tensor, ...]
    weight: float
    plates: Mapping[str, int]
    sites: tuple[Site, ...]
    stack: Callable[[list[Tensor]], Tensor]

    def log_q(self, *, fixed: bool = False, scaled: bool = False) -> Tensor:
        """Log-density of the draws under the guide, (K, M, *plates).

        Args:
            fixed: detach the draw itself; what the guide read upstream stays live.
            scaled: apply the user's scale and mask.
        """
        densities = []
        for site in self.sites:
            log_q = _density(site, site["value"].detach() if fixed else site["value"])
            densities.append(_scale_and_mask(log_q, site) if scaled else log_q)
        return self.stack(densities)

    def scales(self) -> list[Tensor]:
        """For every tensor in `values` the user's scale and mask of log q, broadcastable to it."""
        by_value = {id(site["value"]): site for site in reversed(self.sites)}
        scales = []
        for value in self.values:
            site = by_value[id(value)]
            event_dim = site["fn"].event_dim
            ones = value.new_ones(value.shape[: value.dim() - event_dim])
            scale = _scale_and_mask(ones, site)
            scales.append(scale.reshape(scale.shape + (1,) * event_dim))
        return scales


@dataclass(frozen=True)
class Particles:
    """K x M scored draws."""

    structure: Structure
    layout: Layout
    shared: tuple[Factor, ...]
    cells: tuple[CellBlock, ...]
    draws: Mapping[str, Draws]
    runs: tuple[Mapping[FactorKey, Site], ...]
    model_traces: tuple[Trace, ...]

    @cached_property
    def num_outer(self) -> int:
        """M, the number of outer particles."""
        return self._some_tensor.shape[0]

    @property
    def zero(self) -> Tensor:
        """0 on the device and in the dtype of the log-weights."""
        return self._some_tensor.new_zeros(())

    @property
    def _some_tensor(self) -> Tensor:
        tensors = [f.value for f in self.shared] + [c.log_weights[0] for c in self.cells]
        return tensors[0] if tensors else torch.zeros(1)


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
    expectations: Mapping[FactorKey, Expectation] | None = None,
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
        expectations: exact expectations that replace log-densities.

    Returns:
        The particles.

    Raises:
        StructureChangedError: the sites are not those of `structure`.
        ValueError: a site's shape does not fit its plates.
    """
    num = num_inner * num_outer
    nesting = max(structure.max_plate_nesting, max_plate_nesting)
    shared = frozenset(structure.latents.keys() - layout.local) if num_inner > 1 else frozenset()

    def once(tied: frozenset[str]) -> tuple[dict[FactorKey, Site], Trace, Values]:
        prepare = _Prepare(
            frozenset(structure.latents), tied, num_inner, detached, refreshed, leaves
        )
        model_trace, guide_trace = run(model, guide, args, kwargs, while_guiding=prepare)
        sites = factors(model_trace, guide_trace)
        if signature(sites) != structure.signature:
            raise StructureChangedError
        return sites, model_trace, _to_recall(model_trace, guide_trace, shared)

    runs = []
    if vectorize:
        with pyro.plate(PARTICLE_PLATE, num, dim=-nesting - 1) if num > 1 else nullcontext():
            runs.append(once(shared))
    else:
        earlier: dict[int, Values] = {}
        subsamples: Values = {}
        for particle in range(num):
            inner, outer = divmod(particle, num_outer)
            with _Recall(earlier[outer] if inner else subsamples):
                runs.append(once(frozenset()))
            earlier.setdefault(outer, runs[-1][2])
            subsamples = {n: v for n, v in earlier[0].items() if n not in shared}
    stack = _Stack(num_inner, num_outer, nesting, vectorize)
    sites = tuple(run[0] for run in runs)
    traces = tuple(run[1] for run in runs)
    return _sort(sites, traces, structure, layout, stack, expectations or {})


def find_nan(particles: Particles) -> str | None:
    """Describe the first site whose log-density is NaN, None if there is none."""
    for sites in particles.runs:
        for key, site in sites.items():
            for what, tensor in (("value", site["value"]), ("log-density", _density(site))):
                if torch.isnan(tensor).any():
                    return (
                        f"the {what} of site '{key.name}' of the {key.side} has "
                        f"{int(torch.isnan(tensor).sum())} NaN of {tensor.numel()} elements"
                    )
    return None


def is_vectorizable(model: Program, guide: Program, args: tuple, kwargs: dict) -> bool:
    """Whether two particles at once score as they do one after the other.

    A program that sums or indexes dimensions from the left may run in a particle plate and give
    wrong numbers. Here two particles are drawn at once, replayed one by one, and their
    log-densities compared, site by site. Any exception counts as a no.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
    """
    with aside(), torch.no_grad():
        structure, single = analyse(model, guide, args, kwargs)
        options: dict[str, Any] = {"structure": structure, "layout": Layout({}, frozenset(), "")}
        try:
            both = draw(model, guide, args, kwargs, num_outer=2, vectorize=True, **options)
        except (RuntimeError, ValueError, IndexError, AssertionError):
            return False
        for i in range(2):
            values = _to_recall(both.model_traces[0], both.model_traces[0], frozenset())
            for name in structure.latents:
                key = FactorKey("guide", name)
                values[name] = both.runs[0][key]["value"][i].reshape(single[key]["value"].shape)
            with _Recall(values):
                alone = draw(model, guide, args, kwargs, **options)
            for one, two in zip(alone.shared, both.shared, strict=True):
                if not torch.allclose(one.value[0].sum(), two.value[i].sum(), rtol=1e-3, atol=1e-3):
                    return False
    return True


def touching_cells(particles: Particles) -> str | None:
    """The name of a local latent that the log-weights of other cells depend on, None if none.

    Names tell which sites depend on which, not which elements: a program may mix the elements of
    a plate (a Cholesky factor times whitened draws, say). If the cells are independent, weighting
    each cell's log-weight by u multiplies the gradient in the cell by u and nothing else.

    Args:
        particles: drawn with K = M = 1, not vectorised, `leaves=True`.
    """
    for block in particles.cells:
        u = 1 + torch.rand_like(block.log_weights)
        for name in block.latents:
            (z,) = particles.draws[name].values
            if not z.requires_grad or not block.log_weights.requires_grad:
                continue
            plain, weighted = (
                torch.autograd.grad(total, z, retain_graph=True, allow_unused=True)[0]
                for total in (block.log_weights.sum(), (u * block.log_weights).sum())
            )
            if plain is None:
                continue
            event_dim = particles.draws[name].sites[0]["fn"].event_dim
            own = u.reshape(u.shape[2:]).reshape(u.shape[2:] + (1,) * event_dim)
            error = (weighted - own * plain).abs().max()
            if error > 1e-3 * plain.abs().max():
                return name
    return None


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
    ) -> None:
        super().__init__()
        self.latents = latents
        self.tied = tied
        self.num_inner = num_inner
        self.detached = detached
        self.refreshed = refreshed
        self.leaves = leaves

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


class _Recall(Messenger):
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


@dataclass(frozen=True)
class _Stack:
    """Gives the densities of one vectorised or many sequential runs the shape (K, M, *plates)."""

    num_inner: int
    num_outer: int
    nesting: int
    vectorized: bool

    def __call__(self, densities: list[Tensor]) -> Tensor:
        num = self.num_inner * self.num_outer
        if self.vectorized and num > 1:
            (density,) = densities
            flat = _pad(density, self.nesting + 1)
            flat = flat.expand(num, *flat.shape[1:])
        else:
            flat = torch.stack([_pad(density, self.nesting) for density in densities])
        return flat.reshape(self.num_inner, self.num_outer, *flat.shape[1:])


def _pad(tensor: Tensor, num_dims: int) -> Tensor:
    return tensor.reshape((1,) * (num_dims - tensor.dim()) + tensor.shape)


def _sort(
    runs: tuple[Mapping[FactorKey, Site], ...],
    model_traces: tuple[Trace, ...],
    structure: Structure,
    layout: Layout,
    stack: _Stack,
    expectations: Mapping[FactorKey, Expectation],
) -> Particles:
    shared = []
    inside: dict[Cells, list[tuple[FactorKey, Tensor]]] = {}
    for key, site in runs[0].items():
        value = stack([_score(key, sites, expectations.get(key), stack) for sites in runs])
        value = value if key.side == "model" else -value
        cells = layout.cells.get(key)
        if cells is None:
            shared.append(
                Factor(
                    key,
                    value.mean(0),
                    _weight(site),
                    _dims(site),
                    structure.reads[key]
                    - ({expectations[key].latent} if key in expectations else set()),
                    key not in expectations,
                )
            )
        else:
            inner_weight = _weight(site) / _weight(site, cells)
            if inner_weight != 1.0:
                _check_scale_inside(key, site, cells, layout)
                value = inner_weight * value
            dims = [_dims(site)[plate] for plate in cells]
            inside.setdefault(cells, []).append((key, _sum_except(value, dims)))
    blocks = []
    for cells, terms in inside.items():
        site = runs[0][terms[0][0]]
        blocks.append(
            CellBlock(
                reduce(torch.add, [value for _, value in terms]),
                _weight(site, cells),
                {plate: _dims(site)[plate] for plate in cells},
                frozenset().union(*(structure.reads[key] for key, _ in terms)),
                tuple(k.name for k, _ in terms if k.side == "guide" and k.name in layout.local),
            )
        )
    draws = {
        name: Draws(
            latent,
            tuple({id(r[key]["value"]): r[key]["value"] for r in runs}.values()),
            _weight(runs[0][key]),
            _dims(runs[0][key]),
            tuple(r[key] for r in runs),
            stack,
        )
        for name, latent in structure.latents.items()
        for key in [FactorKey("guide", name)]
    }
    return Particles(structure, layout, tuple(shared), tuple(blocks), draws, runs, model_traces)


def _score(
    key: FactorKey,
    sites: Mapping[FactorKey, Site],
    expectation: Expectation | None,
    stack: _Stack,
) -> Tensor:
    site = sites[key]
    density = _density(site) if expectation is None else expectation.evaluate(site, sites)
    allowed = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
    for dim in range(-density.dim(), 0):
        if density.shape[dim] != 1 and dim not in allowed:
            raise ValueError(
                f"Site '{key.name}' of the {key.side} has batch shape {tuple(density.shape)}, but "
                f"no plate declares dimension {dim}. Put the site into a pyro.plate, or declare "
                "the dimension dependent with .to_event(1)."
            )
    return _scale_and_mask(density, site)


def _density(site: Site, value: Tensor | None = None) -> Tensor:
    value = site["value"] if value is None else value
    try:
        return site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ValueError(
            f"The log-density of site '{site['name']}' failed at a value of shape "
            f"{tuple(value.shape)}: {error}"
        ) from error


def _weight(site: Site, plates: frozenset[str] | None = None) -> float:
    frames = [f for f in site["cond_indep_stack"] if f.name != PARTICLE_PLATE]
    return math.prod(
        f.full_size / f.size
        for f in frames
        if f.full_size is not None and (plates is None or f.name in plates)
    )


def _user_scale(site: Site) -> float | Tensor:
    scale = site["scale"] / _weight(site)
    # full size / size is not exact in floating point, and an absent scale must stay exactly 1
    return 1.0 if not isinstance(scale, Tensor) and math.isclose(scale, 1.0) else scale


def _scale_and_mask(density: Tensor, site: Site) -> Tensor:
    return scale_and_mask(density, _user_scale(site), site["mask"])


def _dims(site: Site) -> dict[str, int]:
    return {
        f.name: f.dim for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLE_PLATE
    }


def _sum_except(value: Tensor, dims: list[int]) -> Tensor:
    """Sum the plate dimensions of (K, M, *plates) but those in `dims`, keeping them as 1."""
    summed = [d for d in range(2 - value.dim(), 0) if d not in dims]
    return value.sum(summed, keepdim=True) if summed else value


def _check_scale_inside(key: FactorKey, site: Site, cells: Cells, layout: Layout) -> None:
    subsampled = next(
        f.name
        for f in site["cond_indep_stack"]
        if f.full_size not in (None, f.size) and f.name not in cells
    )
    if not layout.scale_inside:
        raise ValueError(
            f"Plate '{subsampled}' is subsampled at site '{key.name}' but is not among the cells "
            f"of the bound ({layout.reason}). A subsampled sum inside a non-linear bound is "
            "biased: it bounds nothing. Use all data, StandardELBO, a local latent in that plate, "
            "or local_plates=() to accept the bias."
        )
    warnings.warn(
        f"Plate '{subsampled}' is subsampled inside a non-linear bound because local_plates=() "
        "asks for joint weights: the value is biased and bounds nothing.",
        stacklevel=2,
    )
