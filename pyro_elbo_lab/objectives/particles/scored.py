"""Scored draws with their plate structure: shared factors, and cells with weights of their own.

All tensors have the shape (K, M, *plates): K inner and M outer particles, then one dimension for
every nested plate, of size 1 where a site is not in the plate. `layout` says which factor belongs
where, `sampling` runs the programs.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_elbo_lab.objectives.expectations import Averages
from pyro_elbo_lab.objectives.particles.layout import Cells, Layout
from pyro_elbo_lab.programs.enumeration import Marginal, Site, log_density
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.structure.analysis import Latent, Structure
from pyro_elbo_lab.programs.structure.factors import PARTICLE_PLATE, FactorKey
from pyro_elbo_lab.programs.structure.recall import Values


@dataclass(frozen=True)
class Expectation:
    """An exact expectation over one latent that takes the place of a factor's log-density.

    Attributes:
        latent: the latent that is averaged over.
        evaluate: (site, all sites) -> expected log-density, unscaled, (*batch).
    """

    latent: str
    evaluate: Callable[[Site, Mapping[FactorKey, Site]], Tensor]


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
        densities: log q of every run, unscaled and without mask.
        averages: those of every run whose guide is enumerated.
        stack: gives the densities of all runs the shape (K, M, *plates).
    """

    latent: Latent
    values: tuple[Tensor, ...]
    weight: float
    plates: Mapping[str, int]
    sites: tuple[Site, ...]
    densities: tuple[Tensor, ...]
    averages: tuple[Averages, ...]
    stack: Callable[[list[Tensor]], Tensor]

    def log_q(self, *, fixed: bool = False, scaled: bool = False) -> Tensor:
        """Log-density of the draws under the guide, (K, M, *plates).

        Args:
            fixed: detach the draw itself; what the guide read upstream stays live.
            scaled: apply the user's scale and mask, and the probability of what the guide
                enumerates, detached.
        """
        densities = list(self.densities)
        if fixed:
            densities = [log_density(site, site["value"].detach()) for site in self.sites]
        if scaled:
            pairs = zip(densities, self.sites, strict=True)
            densities = [_scale_and_mask(density, site) for density, site in pairs]
        if self.averages:
            key = FactorKey("guide", self.latent.name)
            pairs = zip(densities, self.averages, strict=True)
            densities = [
                own.average(key, density, fixed=True) if scaled else own.plain(key, density)
                for density, own in pairs
            ]
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
class Run:
    """One run of guide and model.

    Attributes:
        sites: all that contribute to the log-weight.
        densities: their log-densities, unscaled and without mask, (*batch).
        expected: the exact expectations that take the place of some of these.
        model_trace: the trace of the model.
        recalled: the subsamples of plates, from `structure.to_recall`.
        averages: over what the guide enumerates, None if that is nothing.
    """

    sites: Mapping[FactorKey, Site]
    densities: Mapping[FactorKey, Tensor]
    expected: Mapping[FactorKey, Tensor]
    model_trace: Trace
    recalled: Values
    averages: Averages | None = None


@dataclass(frozen=True)
class Particles:
    """K x M scored draws."""

    structure: Structure
    layout: Layout
    shared: tuple[Factor, ...]
    cells: tuple[CellBlock, ...]
    draws: Mapping[str, Draws]
    runs: tuple[Run, ...]

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


def stacked_values(drawn: Draws, num_particles: int) -> Tensor:
    """The draws of a latent in all runs, with a leading dimension for the particles."""
    if len(drawn.sites) == 1 and num_particles > 1:
        return drawn.sites[0]["value"]
    return torch.stack([site["value"] for site in drawn.sites])


@dataclass(frozen=True)
class Stack:
    """Gives the densities of one vectorized or many sequential runs the shape (K, M, *plates)."""

    num_inner: int
    num_outer: int
    nesting: int
    vectorized: bool

    def __call__(self, densities: list[Tensor]) -> Tensor:
        """Stack the densities of all runs."""
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


def sort(
    runs: tuple[Run, ...],
    structure: Structure,
    layout: Layout,
    stack: Stack,
    expectations: Mapping[FactorKey, Expectation],
) -> Particles:
    """Give every log-density of the runs its place in the layout."""
    shared = []
    inside: dict[Cells, list[tuple[FactorKey, Tensor]]] = {}
    for key, site in runs[0].sites.items():
        value = stack([_score(key, run) for run in runs])
        value = value if key.side == "model" else -value
        cells = layout.cells.get(key)
        if cells is None:
            averaged = {expectations[key].latent} if key in expectations else frozenset()
            reads = structure.reads[key] - averaged
            factor = Factor(key, value.mean(0), _weight(site), _dims(site), reads, not averaged)
            shared.append(factor)
        else:
            inner_weight = _weight(site) / _weight(site, cells)
            if inner_weight != 1.0:
                _check_scale_inside(key, site, cells, layout)
                value = inner_weight * value
            dims = [_dims(site)[plate] for plate in cells]
            inside.setdefault(cells, []).append((key, sum_except(value, dims)))
    blocks = [_block(cells, terms, runs[0], structure, layout) for cells, terms in inside.items()]
    draws = {name: _draws(latent, runs, stack) for name, latent in structure.latents.items()}
    return Particles(structure, layout, tuple(shared), tuple(blocks), draws, runs)


def _block(
    cells: Cells,
    terms: list[tuple[FactorKey, Tensor]],
    run: Run,
    structure: Structure,
    layout: Layout,
) -> CellBlock:
    site = run.sites[terms[0][0]]
    return CellBlock(
        log_weights=reduce(torch.add, [value for _, value in terms]),
        weight=_weight(site, cells),
        plates={plate: _dims(site)[plate] for plate in cells},
        reads=frozenset().union(*(structure.reads[key] for key, _ in terms)),
        latents=tuple(k.name for k, _ in terms if k.side == "guide" and k.name in layout.local),
    )


def _draws(latent: Latent, runs: tuple[Run, ...], stack: Stack) -> Draws:
    key = FactorKey("guide", latent.name)
    sites = tuple(run.sites[key] for run in runs)
    return Draws(
        latent=latent,
        values=tuple({id(site["value"]): site["value"] for site in sites}.values()),
        weight=_weight(sites[0]),
        plates=_dims(sites[0]),
        sites=sites,
        densities=tuple(run.densities[key] for run in runs),
        averages=tuple(run.averages for run in runs if run.averages),
        stack=stack,
    )


def find_nan(particles: Particles) -> str | None:
    """Describe the first site whose log-density is NaN, None if there is none."""
    for run in particles.runs:
        for key, site in run.sites.items():
            for what, tensor in (("value", site["value"]), ("log-density", run.densities[key])):
                if torch.isnan(tensor).any():
                    return (
                        f"the {what} of site '{key.name}' of the {key.side} has "
                        f"{int(torch.isnan(tensor).sum())} NaN of {tensor.numel()} elements"
                    )
    return None


def _score(key: FactorKey, run: Run) -> Tensor:
    site = run.sites[key]
    density = run.expected.get(key, run.densities[key])
    if run.averages:
        if isinstance(site["fn"], Marginal):  # its scale has the dimensions of its plates
            return _scale_and_mask(run.averages.average(key, density), site)
        return run.averages.average(key, _scale_and_mask(density, site))
    frames = [f for f in site["cond_indep_stack"] if f.vectorized]
    allowed = {f.dim for f in frames}
    own = [f.dim for f in frames if f.name != PARTICLE_PLATE]
    for dim in range(-density.dim(), min(own, default=0)):
        if density.shape[dim] != 1 and dim not in allowed:
            raise ValueError(
                f"Site '{key.name}' of the {key.side} has batch shape {tuple(density.shape)}, but "
                f"no plate declares dimension {dim}. Put the site into a pyro.plate, or declare "
                "the dimension dependent with .to_event(1)."
            )
    return _scale_and_mask(density, site)


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


def sum_except(value: Tensor, dims: Collection[int]) -> Tensor:
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
    warn(
        f"Plate '{subsampled}' is subsampled inside a non-linear bound because local_plates=() "
        "asks for joint weights: the value is biased and bounds nothing."
    )
