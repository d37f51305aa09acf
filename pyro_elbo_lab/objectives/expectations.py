"""Exact expectations over the sites that a guide enumerates.

A site of the guide that is marked infer={"enumerate": "parallel"} has all its values at once, in a
dimension of its own, one that is marked "sequential" has one in each of several runs (`branches`).
The ELBO is a sum of log-densities f, and each is averaged by itself,

    E_q[f] = sum_c q(c) f(c),

where q(c) is the joint probability of the enumerated sites that f depends on, and of those that
these depend on in turn; all others sum to 1. Plates keep their elements apart: a site's density may
depend on what is enumerated in plates around it, and in no others. Where it depends on others they
are drawn: the average over all combinations of a plate would take exponential time.

With infer={"enumerate": "parallel", "num_samples": n} a site has n draws in the place of all its
values, each of weight 1/n (Aitchison 2019, Tensor Monte Carlo). A latent that is drawn once for
every value of an enumerated site, and cannot be differentiated, has the factor
q(z) / (q(z), detached) in its weights, which is 1, and whose gradient is the score (DiCE: Foerster
et al. 2018). So has a pyro.factor(has_rsample=False) of the guide, the density of what was drawn
outside of Pyro; whatever the guide may have made of it counts as depending on it.
"""

import math
from collections.abc import Mapping
from functools import cached_property

import torch
from pyro.ops.packed import unpack
from torch import Tensor

from pyro_elbo_lab.programs.branches import is_sequential, num_values
from pyro_elbo_lab.programs.enumeration import (
    LogSums,
    Marginal,
    Packed,
    Site,
    aligned,
    is_enumerated,
    log_density,
    named,
    pack,
    plate_symbols,
    plates_of,
    symbol,
    variable,
)
from pyro_elbo_lab.programs.structure.analysis import Structure
from pyro_elbo_lab.programs.structure.factors import FactorKey
from pyro_elbo_lab.programs.structure.reach import check_average

__all__ = ["Averages"]


class Averages:
    """Averages the log-densities of one run of guide and model.

    Args:
        sites: all that contribute to the log-weight.
        structure: their dependencies.
        dice: latents whose score stands in the weights.
        scored: other sites of the guide whose score does.
    """

    def __init__(
        self,
        sites: Mapping[FactorKey, Site],
        structure: Structure,
        dice: frozenset[str],
        scored: frozenset[str],
    ) -> None:
        self._sites = sites
        self._structure = structure
        self._dice = dice
        self._scored = scored
        self._sums = LogSums()
        self._scores: dict[tuple[str, str], Packed] = {}
        self._guide = {key.name: site for key, site in sites.items() if key.side == "guide"}
        self._names = {
            variable(site): name for name, site in self._guide.items() if is_enumerated(site)
        }
        self._sequential = {n: site for n, site in self._guide.items() if is_sequential(site)}

    def density(self, key: FactorKey) -> Tensor:
        """log p or log q, unscaled and without mask; packed if it is a sum over sites."""
        site = self._sites[key]
        if isinstance(site["fn"], Marginal):
            return site["fn"].packed(self._symbols)
        return log_density(site, site["value"])

    def average(self, key: FactorKey, density: Tensor, *, fixed: bool = False) -> Tensor:
        """The expectation of what a site contributes.

        Args:
            key: of the site.
            density: in its dimensions, or packed.
            fixed: detach the weights.

        Returns:
            A tensor with the dimensions of the site's plates.

        Raises:
            NoAverageError: the site depends on what is enumerated in a plate that it is not in.
            ValueError: a dimension that is neither a plate nor enumerated.
        """
        term = self._pack(key, density)
        weights, share = self._log_weights(key, term)
        if weights:
            own = {*term._pyro_dims}
            dims = {d for weight in weights for d in weight._pyro_dims if d in self._variables}
            weight = self._sums.sumproduct(weights, dims - own)
            if fixed:
                weight = named(weight.detach(), weight._pyro_dims)
            term = _expectation(term, weight, self._variables)
        return share * self._unpack(key, term)

    def plain(self, key: FactorKey, density: Tensor) -> Tensor:
        """A density that does not depend on enumerated sites, with the dimensions of its plates."""
        return self._unpack(key, self._pack(key, density))

    @cached_property
    def _symbols(self) -> dict[str, str]:
        sites = list(self._sites.values())
        for site in self._sites.values():
            if isinstance(site["fn"], Marginal):
                sites.extend(site["fn"].sites.values())
        return plate_symbols(dict.fromkeys(f.name for site in sites for f in plates_of(site)))

    @cached_property
    def _variables(self) -> frozenset[str]:
        return frozenset(map(symbol, self._names))

    def _pack(self, key: FactorKey, density: Tensor) -> Packed:
        if hasattr(density, "_pyro_dims"):
            return density
        return pack(f"'{key.name}' of the {key.side}", self._sites[key], density, self._symbols)

    def _unpack(self, key: FactorKey, term: Packed) -> Tensor:
        dims = {self._symbols[f.name]: f.dim for f in plates_of(self._sites[key])}
        return unpack(term, dims)

    def _log_weights(self, key: FactorKey, term: Packed) -> tuple[list[Packed], float]:
        """The log-probabilities that weigh a term, and what makes up for branches that differ in
        nothing that it may depend on."""
        around = {f.name for f in plates_of(self._sites[key])}
        weights, share = [], 1.0
        for name, site in self._sequential.items():
            if all(f.name in around for f in plates_of(site)):
                weights.append(self._probabilities[name])
            else:
                share /= num_values(site)
        for name in sorted((self._dice & self._structure.reads[key]) | self._scored):
            weights.append(self._score(name, around))
        waiting = [d for one in (term, *weights) for d in one._pyro_dims if d in self._variables]
        reached: set[str] = set()
        while waiting:
            dim = waiting.pop()
            if dim not in reached:
                reached.add(dim)
                name = self._name_of[dim]
                check_average(key, self._sites[key], name, self._guide[name])
                weights.append(self._probabilities[name])
                waiting.extend(d for d in weights[-1]._pyro_dims if d in self._variables)
        return weights, share

    @cached_property
    def _name_of(self) -> dict[str, str]:
        return {symbol(id_): name for id_, name in self._names.items()}

    @cached_property
    def _probabilities(self) -> dict[str, Packed]:
        """The weight of each value of an enumerated site, given those that it depends on."""
        names = [*self._names.values(), *self._sequential]
        return {name: self._probability(name) for name in names}

    def _probability(self, name: str) -> Packed:
        key, site = FactorKey("guide", name), self._guide[name]
        log_q = log_density(site, site["value"])
        num_samples = site["infer"].get("num_samples")
        if num_samples is not None:
            drawn = torch.zeros_like(log_q) if site["fn"].has_rsample else log_q - log_q.detach()
            log_q = drawn - math.log(num_samples)
        return self._pack(key, log_q)

    def _score(self, name: str, around: set[str]) -> Packed:
        """log q - (log q, detached) of a latent, summed within the given plates."""
        key, site = FactorKey("guide", name), self._guide[name]
        outside = "".join(
            sorted(self._symbols[f.name] for f in plates_of(site) if f.name not in around)
        )
        if (name, outside) not in self._scores:
            log_q = self._pack(key, log_density(site, site["value"]))
            dims = log_q._pyro_dims
            axes = [dims.index(d) for d in outside if d in dims]
            total = log_q.sum(axes) if axes else log_q
            rest = "".join(d for d in dims if d not in outside)
            self._scores[name, outside] = named(total - total.detach(), rest)
        return self._scores[name, outside]


def _expectation(term: Packed, log_weight: Packed, variables: frozenset[str]) -> Packed:
    """sum over variables of weight * term; where the weight is 0, so is the product."""
    dims = "".join(sorted({*term._pyro_dims, *log_weight._pyro_dims}))
    weight = aligned(log_weight, dims).exp()
    values = aligned(term, dims)
    weight, values = torch.broadcast_tensors(weight, values)
    possible = weight > 0
    zero = torch.zeros_like(values)
    product = torch.where(possible, weight, zero) * torch.where(possible, values, zero)
    axes = [i for i, d in enumerate(dims) if d in variables]
    total = product.sum(axes) if axes else product
    return named(total, "".join(d for d in dims if d not in variables))
