"""The posterior group of a DataTree as arrays of labeled scalar parameters."""

import itertools

import numpy as np
import xarray as xr

from pyro_elbo_lab.statistics.tolerances import MIN_DRAWS_PER_CHAIN

_SAMPLE_DIMS = ("chain", "draw")
_ELEMENT = "_element"


def posterior(tree: xr.DataTree, name: str) -> xr.Dataset:
    """The numeric variables of the posterior group of `tree`, chain and draw first.

    `name` is what error messages call the tree.

    Raises:
        ValueError: if there is no posterior group or it is empty, a variable has no chain or draw
            dimension, or a chain is too short.
    """
    if "posterior" not in tree.children:
        groups = sorted(tree.children) or "none"
        raise ValueError(
            f"{name!r} has no posterior group, only {groups}; expected an ArviZ DataTree"
        )
    for variable, array in tree["posterior"].data_vars.items():
        if array.dtype.kind == "c":
            raise ValueError(
                f"posterior variable {str(variable)!r} of {name!r} is complex; expected real "
                "numbers, such as its real and imaginary part as two variables"
            )
    numeric = {
        str(variable): array
        for variable, array in tree["posterior"].data_vars.items()
        if array.dtype.kind in "fiub"
    }
    if not numeric:
        raise ValueError(f"the posterior group of {name!r} has no variables of numbers to compare")
    for variable, array in numeric.items():
        _check_sample_dims(array, variable, name)
    return xr.Dataset(numeric).transpose(*_SAMPLE_DIMS, ...)


def aligned(array: xr.DataArray, reference: xr.DataArray, name: str) -> xr.DataArray:
    """`array` with its parameter dimensions in the order of `reference`.

    Dimensions are matched by name, then elements by coordinate value where both sides name
    their elements, otherwise by position.

    Raises:
        ValueError: if shapes or coordinate values cannot be matched.
    """
    dims = [dim for dim in reference.dims if dim not in _SAMPLE_DIMS]
    if set(dims) == set(array.dims) - set(_SAMPLE_DIMS):
        array = array.transpose(*_SAMPLE_DIMS, *dims)
    shapes = array.shape[2:], reference.shape[2:]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"posterior variable {reference.name!r} has shape {shapes[0]} in {name!r} and "
            f"{shapes[1]} in the reference (chain and draw apart); both must describe one model"
        )
    for dim in dims:
        if dim in array.dims and _names_elements(array, dim) and _names_elements(reference, dim):
            array = _in_the_order_of(array, reference, dim, name)
    return array


def labels(array: xr.DataArray) -> list[str]:
    """One label per scalar element, as ArviZ writes them: `theta[Choate]`.

    >>> draws = xr.DataArray(
    ...     np.zeros((1, 2, 2)), dims=("chain", "draw", "school"),
    ...     coords={"school": ["Choate", "Deerfield"]}, name="theta",
    ... )
    >>> labels(draws)
    ['theta[Choate]', 'theta[Deerfield]']
    """
    dims = [dim for dim in array.dims if dim not in _SAMPLE_DIMS]
    if not dims:
        return [str(array.name)]
    values = (array[dim].values.tolist() for dim in dims)
    return [f"{array.name}[{', '.join(map(str, key))}]" for key in itertools.product(*values)]


def elements(array: xr.DataArray, index: np.ndarray) -> np.ndarray:
    """The draws of the scalar elements `index` as float64 `(P, chain, draw)`.

    Only these are read where the array lies in a file.
    """
    variable, dims = array.variable, array.dims[2:]
    if not index.size:  # which older versions of xarray cannot read from a file
        return np.empty((0, *array.shape[:2]))
    if not dims:
        values = variable.values[None]
    elif len(dims) == 1 and index.size and (np.diff(index) == 1).all():  # faster to read
        values = np.moveaxis(variable[:, :, index[0] : index[-1] + 1].values, -1, 0)
    else:
        places = np.unravel_index(index, array.shape[2:])
        chosen = {d: xr.Variable(_ELEMENT, i) for d, i in zip(dims, places, strict=True)}
        picked = variable.isel(chosen)
        values = np.moveaxis(picked.values, picked.dims.index(_ELEMENT), 0)
    return np.ascontiguousarray(values, dtype=np.float64)


def check_finite(draws: np.ndarray, array: xr.DataArray, index: np.ndarray, name: str) -> None:
    """Refuse draws `(P, chain, draw)` of the elements `index` of `array` of tree `name`.

    Raises:
        ValueError: if a draw is NaN or infinite.
    """
    bad = (~np.isfinite(draws)).sum((1, 2))
    if not bad.any():
        return
    first = int(np.flatnonzero(bad)[0])
    raise ValueError(
        f"posterior variable {str(array.name)!r} of {name!r} has {bad[first]} NaN or infinite "
        f"values among {draws[0].size} draws of {labels(array)[index[first]]}; remove them or "
        "repair the fit"
    )


def log_weights(tree: xr.DataTree, draws: xr.Dataset, name: str) -> np.ndarray | None:
    """`sample_stats.log_weight` of `tree` flattened over chain and draw, if it is there.

    Raises:
        ValueError: if there is not one log-weight for each posterior draw.
    """
    if "sample_stats" not in tree.children or "log_weight" not in tree["sample_stats"].data_vars:
        return None
    array = tree["sample_stats"]["log_weight"]
    expected = {dim: draws.sizes[dim] for dim in _SAMPLE_DIMS}
    if dict(array.sizes) != expected:
        raise ValueError(
            f"sample_stats variable 'log_weight' of {name!r} has sizes {dict(array.sizes)}; "
            f"expected one weight for each posterior draw: {expected}"
        )
    return array.transpose(*_SAMPLE_DIMS).values.ravel()


def _check_sample_dims(array: xr.DataArray, variable: str, name: str) -> None:
    missing = [dim for dim in _SAMPLE_DIMS if dim not in array.dims]
    if missing:
        raise ValueError(
            f"posterior variable {variable!r} of {name!r} has dimensions {array.dims} and lacks "
            f"{missing}"
        )
    if array.sizes["chain"] < 1 or array.sizes["draw"] < MIN_DRAWS_PER_CHAIN:
        raise ValueError(
            f"{name!r} has {array.sizes['chain']} chains of {array.sizes['draw']} draws; at "
            f"least {MIN_DRAWS_PER_CHAIN} draws a chain are needed to compare distributions"
        )


def _names_elements(array: xr.DataArray, dim: object) -> bool:
    """Whether the coordinate of `dim` is more than the default 0, 1, 2, …"""
    if dim not in array.coords:
        return False
    values = array[dim].values
    return not (values.dtype.kind in "iu" and np.array_equal(values, np.arange(values.size)))


def _in_the_order_of(
    array: xr.DataArray, reference: xr.DataArray, dim: object, name: str
) -> xr.DataArray:
    ours, theirs = array[dim].values, reference[dim].values
    if np.array_equal(ours, theirs):
        return array
    if set(ours.tolist()) != set(theirs.tolist()) or len(set(ours.tolist())) < ours.size:
        raise ValueError(
            f"posterior variable {reference.name!r}: coordinate {dim!r} has the values "
            f"{ours.tolist()} in {name!r} and {theirs.tolist()} in the reference"
        )
    return array.sel({dim: theirs})
