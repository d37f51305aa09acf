"""Exact sums over the discrete sites of a model that its guide leaves out.

A latent of the model that is marked infer={"enumerate": "parallel"} and missing in the guide is
summed out. Pyro's enumeration gives such a site all its values at once, in a dimension to the left
of all plates, and whatever depends on it inherits the dimension. Sites that share such dimensions
form a *component*, and the component contributes one log-density,

    log p(x, z) = log sum_c prod_i p_i(x, z, c),

in the plates that all its sites lie in. To the rest of the library it is one site of the model,
with a `Marginal` in the place of a distribution. Masks act within the sum, on all sites but the
enumerated ones, which sum to 1 of themselves; the scale acts on the result, so all sites of a
component must have the same.

The sum is plated variable elimination (Obermeyer et al. 2019, Tensor variable elimination for
plated factor graphs): a chain of pyro.markov costs time linear in its length.

Where the guide enumerates sites of its own (see `expectations`) the model's log-densities have
their dimensions too. These are not summed here: a component has one log-density for each of their
values.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.packed import unpack
from pyro.ops.rings import LogRing
from torch import Tensor

Site = Any  # one of Pyro's messages, a dict
Packed = Any  # a tensor without dimensions of size 1, whose `_pyro_dims` names those it has

_PLATE_SYMBOLS, _VARIABLE_SYMBOLS = 0x100, 0x10000
_NAMES_SPELT_OUT = 4


@dataclass(frozen=True)
class Marginal:
    """A component of sites, summed over their enumerated variables.

    Attributes:
        sites: the model's sites, by name.
        plates: the vectorized plates that all of them lie in, which the sum keeps.
        given: those whose values the guide enumerates, over which is not summed.
    """

    sites: Mapping[str, Site]
    plates: tuple[Any, ...]
    given: frozenset[str] = frozenset()

    def log_density(self) -> Tensor:
        """The log of the sum, unscaled, (*plates). Takes and raises what `packed` does."""
        names = dict.fromkeys(f.name for site in self.sites.values() for f in plates_of(site))
        symbols = plate_symbols(names)
        return unpack(self.packed(symbols), {symbols[f.name]: f.dim for f in self.plates})

    def packed(self, symbols: Mapping[str, str]) -> Packed:
        """The log of the sum, unscaled, over plates and the variables that the guide enumerates.

        Args:
            symbols: of all plates, by name, see `plate_symbols`.

        Raises:
            ValueError: a site's shape does not fit its plates, or it lies outside a plate in which
                a variable that it depends on is summed out.
            NotImplementedError: plates that cross each other, where the sum takes exponential time.
        """
        tree: OrderedDict[frozenset[str], list[Packed]] = OrderedDict()
        for name, site in self.sites.items():
            ordinal = frozenset(symbols[f.name] for f in plates_of(site))
            tree.setdefault(ordinal, []).append(self._pack(name, site, symbols))
        dims = {dim for terms in tree.values() for term in terms for dim in term._pyro_dims}
        summed = {symbol(variable(self.sites[name])) for name in self._variables()}
        try:
            contracted = contract_tensor_tree(tree, dims & summed, ring=LogSums())
        except NotImplementedError as error:
            raise NotImplementedError(
                "Expected tree-structured plate nesting: "
                f"the sum over {_quoted(self._variables())} takes time exponential in the size of "
                f"a plate, because sites of {_quoted(self._plate_names())} share variables but the "
                "plates are not nested. Make one of these plates a Python loop, or sample in the "
                "guide."
            ) from error
        ((term,),) = contracted.values()
        return term

    def _pack(self, name: str, site: Site, symbols: Mapping[str, str]) -> Packed:
        density = log_density(site, site["value"])
        if not is_enumerated(site) or name in self.given:
            density = scale_and_mask(density, 1.0, site["mask"])
        return pack(f"'{name}' of the model", site, density, symbols)

    def _variables(self) -> list[str]:
        names = (name for name, site in self.sites.items() if is_enumerated(site))
        return [name for name in names if name not in self.given]

    def _plate_names(self) -> dict[str, None]:
        return dict.fromkeys(f.name for site in self.sites.values() for f in plates_of(site))


def marginalize(sites: Mapping[str, Site], given: frozenset[str] = frozenset()) -> dict[str, Site]:
    """Replace sites that depend on enumerated variables by one site for every component.

    Args:
        sites: the model's sites that contribute to the log-weight, from one run.
        given: names of those whose values the guide enumerates.

    Returns:
        The sites, those of a component joined under a name such as "c, x". Without an enumerated
        site, the sites as they are.

    Raises:
        ValueError: sites of a component differ in scale, or one lies outside a plate in which a
            variable that it depends on is summed out.
    """
    variables = {
        variable(site): name
        for name, site in sites.items()
        if is_enumerated(site) and name not in given
    }
    if not variables:
        return dict(sites)
    first = max(sites[name]["infer"]["_enumerate_dim"] for name in variables.values())
    result: dict[str, Site] = {}
    for names in _components(sites, variables):
        component = {name: sites[name] for name in names}
        # a variable of one value leaves a dimension of size 1, which joins nobody but has to go
        touched = len(names) > 1 or variable_or_none(component[names[0]]) in variables
        if not given:
            touched |= max(map(len, shapes_of(component[names[0]]))) >= -first
        result[join(names)] = _joined(component, given) if touched else component[names[0]]
    return result


def is_enumerated(site: Site) -> bool:
    """Whether this run gave a site all its values at once."""
    return (site["infer"] or {}).get("_enumerate_dim") is not None


def in_scope(site: Site) -> frozenset[int]:
    """The variables that Pyro allows a site to depend on: pyro.markov hides the earlier ones."""
    return frozenset(site["infer"].get("_dim_to_id", {}).values())


def variable(site: Site) -> int:
    """What `in_scope` calls an enumerated site."""
    return site["infer"]["_dim_to_id"][site["infer"]["_enumerate_dim"]]


def variable_or_none(site: Site) -> int | None:
    """As `variable`, None for a site that is not enumerated."""
    return variable(site) if is_enumerated(site) else None


def plate_symbols(names: Iterable[str]) -> dict[str, str]:
    """What packed tensors call plates."""
    return {name: chr(_PLATE_SYMBOLS + i) for i, name in enumerate(names)}


def symbol(id_: int) -> str:
    """What packed tensors call a variable."""
    return chr(_VARIABLE_SYMBOLS + id_)


def log_density(site: Site, value: Tensor) -> Tensor:
    """log p or log q of a site at a value, unscaled and without mask, (*batch)."""
    if isinstance(site["fn"], Marginal):
        return site["fn"].log_density()
    try:
        return site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ValueError(
            f"The log-density of site '{site['name']}' failed at a value of shape "
            f"{tuple(value.shape)}: {error}"
        ) from error


def join(names: Iterable[str]) -> str:
    """A name for several sites.

    Example:
        >>> join(["c", "x"])
        'c, x'
        >>> join([f"x_{i}" for i in range(20)])
        'x_0, ..., x_19 (20 sites)'
    """
    names = list(names)
    if len(names) <= _NAMES_SPELT_OUT:
        return ", ".join(names)
    return f"{names[0]}, ..., {names[-1]} ({len(names)} sites)"


def _components(sites: Mapping[str, Site], variables: Mapping[int, str]) -> list[list[str]]:
    """The sites in groups that share variables, each in the order of the program."""
    group: dict[str, list[str]] = {}
    for name, site in sites.items():
        merged = [name]
        for id_ in sorted(variables_of(site) & variables.keys()):
            other = variables[id_]
            check_inside(name, site, other, sites[other])
            if other != name and group[other] is not merged:
                merged = _merge(group, group[other], merged)
        for member in merged:
            group[member] = merged
    order = {name: i for i, name in enumerate(sites)}
    distinct = {id(names): sorted(names, key=order.__getitem__) for names in group.values()}
    return list(distinct.values())


def _merge(group: dict[str, list[str]], into: list[str], names: list[str]) -> list[str]:
    into.extend(names)
    for name in names:
        group[name] = into
    return into


def variables_of(site: Site) -> frozenset[int]:
    """The variables that a site depends on, told by the shapes of distribution, value and mask."""
    shapes = shapes_of(site)
    known = site["infer"].get("_dim_to_id", {})
    ids = {
        id_
        for dim, id_ in known.items()
        if any(-dim <= len(shape) and shape[dim] > 1 for shape in shapes)
    }
    return frozenset({*ids, variable(site)} if is_enumerated(site) else ids)


def shapes_of(site: Site) -> list[tuple[int, ...]]:
    """The batch shapes that a site's log-density is broadcast from."""
    fn, mask, shape = site["fn"], site["mask"], tuple(getattr(site["value"], "shape", ()))
    shapes = [tuple(getattr(fn, "batch_shape", ()))]
    shapes.append(shape[: len(shape) - getattr(fn, "event_dim", 0)])
    if isinstance(mask, Tensor) and not is_enumerated(site):
        shapes.append(tuple(mask.shape))
    return shapes


def check_inside(name: str, site: Site, other: str, summed: Site) -> None:
    """Raise a ValueError if a site lies outside a plate of an enumerated site that it reads."""
    around = {f.name for f in plates_of(site)}
    for plate in plates_of(summed):
        if plate.name not in around:
            raise ValueError(
                f"Site '{name}' lies outside plate '{plate.name}' but depends on '{other}', which "
                "is summed out within it: the sum over all its combinations would take exponential "
                f"time. Move '{name}' into the plate, or sample '{other}' in the guide."
            )


def _joined(component: Mapping[str, Site], given: frozenset[str]) -> Site:
    sites = list(component.values())
    stacks = [{(f.name, f.counter) for f in site["cond_indep_stack"]} for site in sites]
    common = frozenset.intersection(*map(frozenset, stacks))
    frames = tuple(f for f in sites[0]["cond_indep_stack"] if (f.name, f.counter) in common)
    plates = tuple(f for f in frames if f.vectorized)
    return {
        "type": "sample",
        "name": join(component),
        "fn": Marginal(component, plates, given & component.keys()),
        "value": torch.zeros(0),
        "args": (),
        "kwargs": {},
        "infer": {},
        "is_observed": True,
        "cond_indep_stack": frames,
        "scale": _common_scale(component, {f.dim for f in plates}),
        "mask": None,
    }


def _common_scale(component: Mapping[str, Site], dims: set[int]) -> float | Tensor:
    (first, site), *others = component.items()
    scale = site["scale"]
    for name, other in others:
        if not _equal(scale, other["scale"]):
            raise ValueError(
                f"Sites '{first}' and '{name}' share variables that are summed out, but their "
                f"scales are {_shown(scale)} and {_shown(other['scale'])}, expected one scale for "
                "all sites of a sum: the subsample weights of their plates times poutine.scale. "
                "Put them into the same subsampled plates and under the same poutine.scale, or "
                "sample in the guide."
            )
    if isinstance(scale, Tensor):
        outside = [d for d in range(-scale.dim(), 0) if scale.shape[d] > 1 and d not in dims]
        if outside:
            raise ValueError(
                f"The scale of sites {_quoted(component)}, which share variables that are summed "
                f"out, has shape {tuple(scale.shape)}, expected one number, or a dimension for "
                "each plate that all of them lie in."
            )
    return scale


def _equal(a: float | Tensor, b: float | Tensor) -> bool:
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return math.isclose(a, b)
    one, other = torch.as_tensor(a), torch.as_tensor(b)
    same = one.requires_grad == other.requires_grad  # equal numbers may differ in derivatives
    return a is b or (same and one.shape == other.shape and torch.allclose(one, other.to(one)))


def _shown(scale: float | Tensor) -> str:
    if isinstance(scale, Tensor) and scale.numel() > 1:
        return f"a tensor of shape {tuple(scale.shape)}"
    return f"{float(scale):.6g}"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def plates_of(site: Site) -> list[Any]:
    """The frames of a site's vectorized plates."""
    return [f for f in site["cond_indep_stack"] if f.vectorized]


def pack(what: str, site: Site, density: Tensor, symbols: Mapping[str, str]) -> Packed:
    """Drop dimensions of size 1 from a log-density, and name the others.

    Args:
        what: the name of the site, for messages.
        site: of which it is the log-density.
        density: its dimensions are those of plates and enumerated variables.
        symbols: of plates, by name.

    Raises:
        ValueError: a dimension that is neither.
    """
    known = site["infer"].get("_dim_to_id", {}).items()
    names = {dim: symbol(id_) for dim, id_ in known}
    names |= {f.dim: symbols[f.name] for f in plates_of(site)}
    wide = [dim for dim in range(-density.dim(), 0) if density.shape[dim] > 1]
    for dim in wide:
        if dim not in names:
            raise ValueError(
                f"Site {what} has batch shape {tuple(density.shape)} while discrete sites are "
                f"summed out, but no plate declares dimension {dim}. Put the site into a "
                "pyro.plate, or declare the dimension dependent with .to_event(1)."
            )
    return named(density.squeeze(), "".join(names[dim] for dim in wide))


class LogSums(LogRing):
    """Sums of products of terms in log space, for Pyro's plated variable elimination.

    Pyro's own takes the exponential of each term before it multiplies them: it underflows where
    terms disagree by more than 87 nats in float32. Here the sum over a variable is taken of the
    product of all terms that have it. A sum that was taken before is not taken again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[Any, ...], tuple[Packed, list[Packed]]] = {}

    def sumproduct(self, terms: list[Packed], dims: set[str]) -> Packed:
        sizes = {d: n for term in terms for d, n in zip(term._pyro_dims, term.shape, strict=True)}
        alive = dict(enumerate(terms))
        users = {d: {i for i, t in alive.items() if d in t._pyro_dims} for d in sorted(dims)}

        def cost(dim: str) -> int:
            around = {d for i in users[dim] for d in alive[i]._pyro_dims}
            return math.prod(sizes[d] for d in around)

        costs = {dim: cost(dim) for dim in users}
        while costs:
            dim = min(costs, key=costs.__getitem__)
            del costs[dim]
            used = users.pop(dim)
            fresh = len(terms) + len(costs)
            alive[fresh] = self._sum_out([alive.pop(i) for i in sorted(used)], dim)
            touched = [d for d in alive[fresh]._pyro_dims if d in users]
            for d in touched:
                users[d] = users[d] - used | {fresh}
            costs.update({d: cost(d) for d in touched})
        return _product(list(alive.values()))

    def _sum_out(self, terms: list[Packed], dim: str) -> Packed:
        key = (dim, *map(id, terms))
        if key not in self._known:  # with the terms, whose identity must last
            self._known[key] = _log_sum(_product(terms), dim), terms
        return self._known[key][0]


def named(tensor: Packed, dims: str) -> Packed:
    """Say which dimensions a tensor has."""
    tensor._pyro_dims = dims
    return tensor


def _product(terms: list[Packed]) -> Packed:
    dims = "".join(sorted({d for term in terms for d in term._pyro_dims}))
    total = sum(aligned(term, dims) for term in terms)
    return named(total, dims)


def aligned(term: Packed, dims: str) -> Tensor:
    """A packed tensor with the given dimensions, of size 1 where it lacks one."""
    own = term._pyro_dims
    ordered = term.permute([own.index(d) for d in dims if d in own])
    sizes = iter(ordered.shape)
    return ordered.reshape([next(sizes) if d in own else 1 for d in dims])


def _log_sum(term: Packed, dim: str) -> Packed:
    """log sum exp over one dimension. Its gradient is 0, not NaN, where all terms are -inf."""
    axis = term._pyro_dims.index(dim)
    largest = torch.finfo(term.dtype).max
    shift = term.detach().amax(axis, keepdim=True).clamp(-largest, largest)
    total = (term - shift).exp().sum(axis)
    log_total = torch.where(total == 0, torch.ones_like(total), total).log()
    log_total = log_total.masked_fill(total == 0, -math.inf)
    return named(log_total + shift.squeeze(axis), term._pyro_dims.replace(dim, ""))
