"""Arrays as a DataTree in ArviZ's layout."""

import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import arviz_base
import numpy as np
from xarray import DataTree

__all__ = ["Groups", "to_datatree", "variable"]

Groups = Mapping[str, Mapping[str, np.ndarray]]

_WITHOUT_DRAWS = ("observed_data", "constant_data")
_DRAWS_OF_THEIR_OWN = ("prior", "prior_predictive")
_NO_VARIABLES = ("", ".", "..", "chain", "draw")


def variable(site: str) -> str:
    """The name of a site's variable in a DataTree, which has "." in the place of "/".

    There, and in netCDF, "/" separates a group from its members.

    Raises:
        ValueError: a name that no variable can have: empty, ".", "..", "chain", "draw", with a
            NUL character, or not Unicode.

    Example:
        >>> variable("encoder/z")
        'encoder.z'
    """
    if site in _NO_VARIABLES or re.search("[\0\ud800-\udfff]", site):
        raise ValueError(
            f"A site called {site!r} cannot be a variable of a DataTree: names there are not empty "
            "nor '.', '..', 'chain' or 'draw', and hold Unicode without NUL. Give the site another "
            "name."
        )
    return site.replace("/", ".")


def to_datatree(
    posterior: Mapping[str, np.ndarray],
    dims: Mapping[str, Sequence[str]],
    *,
    sample_stats: Mapping[str, np.ndarray] | None = None,
    observed_data: Mapping[str, np.ndarray] | None = None,
    groups: Groups | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> DataTree:
    """Dress arrays in labels: a DataTree in ArviZ's layout, which `to_netcdf` can write.

    Args:
        posterior: draws by site, each of shape (chain, draw, *site shape). The variables are named
            as `variable` says.
        dims: names of the dimensions after (chain, draw), such as `site_dims` gives; sites
            without an entry get ArviZ's default names.
        sample_stats: statistics of the sampler by name, each of shape (chain, draw, ...).
        observed_data: observed values by site, each of the site's shape.
        groups: more of ArviZ's groups by name. `log_likelihood` and `posterior_predictive` have
            the posterior's draws, `prior` and `prior_predictive` (1, draw, ...), `constant_data`
            none.
        coords: labels of the elements of dimensions, in place of 0, 1, 2, ...
        attrs: attributes of the root, strings and numbers.

    Returns:
        A tree with those groups that have values.

    Raises:
        ValueError: an array that lacks chain and draw, has other numbers of them than its
            neighbors, or whose number of dimensions is not that of its names; labels whose number
            is not the size of their dimension; a site whose name no variable can have, or two
            sites whose variables would have the same.
        TypeError: an attribute that is neither a string nor a number.

    Example:
        >>> tree = to_datatree({"effect": np.zeros((4, 100, 8))}, {"effect": ("school",)})
        >>> dict(tree["posterior"].sizes)
        {'chain': 4, 'draw': 100, 'school': 8}
    """
    everything: dict[str, Mapping[str, np.ndarray]] = {
        "posterior": posterior,
        "sample_stats": sample_stats or {},
        **(groups or {}),
        "observed_data": observed_data or {},
    }
    everything = {group: _renamed(arrays) for group, arrays in everything.items()}
    posterior = everything["posterior"]
    dims = {variable(name): [variable(d) for d in found] for name, found in dims.items()}
    coords = _renamed(coords or {})
    leading = next((np.shape(values)[:2] for values in posterior.values()), None)
    for group, arrays in everything.items():
        if group not in _WITHOUT_DRAWS:
            expected = None if group in _DRAWS_OF_THEIR_OWN else leading
            _check_draws(group, arrays, expected, next(iter(posterior), ""))
    names = {name: tuple(d) for name, d in dims.items() if _is_there(name, everything)}
    sizes = _sizes(everything, names)
    for dim, labels in coords.items():
        if dim in sizes and len(labels) != sizes[dim]:
            raise ValueError(
                f"coords['{dim}'] has {len(labels)} labels, but dimension '{dim}' has size "
                f"{sizes[dim]}."
            )
    tree = arviz_base.from_dict(
        {g: dict(a) for g, a in everything.items() if a},
        dims={name: list(d) for name, d in names.items()},
        coords={dim: list(labels) for dim, labels in coords.items()},
    )
    tree.attrs.update({name: _attribute(name, value) for name, value in (attrs or {}).items()})
    return tree


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if (renamed := variable(name)) in found:
            raise ValueError(
                f"Two sites, one of them '{name}', would both be the variable '{renamed}': '/' is "
                "written as '.'. Give one another name."
            )
        found[renamed] = value
    return found


def _check_draws(
    group: str, arrays: Mapping[str, np.ndarray], expected: tuple | None, first: str
) -> None:
    for name, values in arrays.items():
        what = f"'{name}'" if group == "posterior" else f"{group}['{name}']"
        if np.ndim(values) < 2 or (expected is not None and np.shape(values)[:2] != expected):
            raise ValueError(
                f"{what} has shape {np.shape(values)}, expected (chain, draw, ...) with (chain, "
                f"draw) = {expected} as in '{first}'."
            )


def _is_there(name: str, groups: Groups) -> bool:
    return any(name in arrays for arrays in groups.values())


def _sizes(groups: Groups, dims: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """The size of every named dimension, once each array has been found to have its dimensions."""
    sizes: dict[str, int] = {}
    for group, arrays in groups.items():
        for name in arrays.keys() & dims.keys():
            shape = np.shape(arrays[name])[0 if group in _WITHOUT_DRAWS else 2 :]
            of_event = group == "log_likelihood"  # which has none of the event's dimensions
            if len(shape) != len(dims[name]) and not (of_event and len(shape) < len(dims[name])):
                raise ValueError(
                    f"'{name}' has {len(shape)} dimensions of shape {shape}, but its names are "
                    f"{tuple(dims[name])}."
                )
            sizes |= dict(zip(dims[name], shape, strict=False))
    return sizes


def _attribute(name: str, value: Any) -> str | int | float:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_ | Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(
        f"attribute '{name}' is a {type(value).__name__}, expected a string or a number "
        "(nothing else survives netCDF)."
    )
