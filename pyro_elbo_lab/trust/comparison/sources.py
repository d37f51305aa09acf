"""What may serve as a reference, as a DataTree; and whether it can be relied on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import arviz_base
import numpy as np
import xarray as xr

from pyro_elbo_lab.inference.trees.datatree import variable
from pyro_elbo_lab.statistics.reliability import Worst, judge


def as_tree(source: Any, name: str) -> xr.DataTree:
    """Draws as a DataTree.

    Args:
        source: a DataTree; a mapping from variable to draws `(chain, draw, *shape)`, taken to be
            exact; or a finished `MCMC` of Pyro or NumPyro, whose divergences are kept.
        name: what error messages call it.

    Raises:
        TypeError: if it is something else.

    >>> tree = as_tree({"mu": np.zeros((4, 100))}, "exact")
    >>> dict(tree["posterior"].sizes), tree.attrs["reliable"]
    ({'chain': 4, 'draw': 100}, 1)
    """
    if isinstance(source, xr.DataTree):
        return source
    if isinstance(source, Mapping) and not isinstance(source, xr.Dataset):
        return _exact(source, name)
    if hasattr(source, "get_samples"):
        return _from_mcmc(source, name)
    raise TypeError(
        f"{name!r} is a {type(source).__name__}; expected an ArviZ DataTree, a finished MCMC, or "
        f"a mapping from variable to an array of draws (chain, draw, ...){_remedy(source)}"
    )


def _remedy(source: Any) -> str:
    if isinstance(source, str | Path):
        return ": read the file first, xarray.open_datatree(path)"
    if isinstance(source, xr.Dataset):
        return ': pass xarray.DataTree.from_dict({"posterior": dataset})'
    return ""


def several(reference: Any) -> dict[str, Any]:
    """The references by name: the values of a mapping of references, or the only one.

    A mapping of arrays is one reference.
    """
    if isinstance(reference, Mapping) and not isinstance(reference, xr.DataTree):
        values = reference.values()  # a DataTree is a mapping too
        if any(isinstance(x, Mapping) or hasattr(x, "get_samples") for x in values):
            return dict(reference)
    return {"reference": reference}


def reliability(tree: xr.DataTree, found: Worst) -> tuple[bool, str]:
    """Whether a reference can be relied on, and one sentence that says why.

    A tree that has the root attribute `reliable` (0 or 1) has been judged, with the reason in
    `reliability`. Any other is judged as the draws of `nuts` are.

    Args:
        tree: the reference.
        found: the worst R-hat and effective sample size of its parameters.
    """
    if "reliable" in tree.attrs:
        unsaid = "the reference does not say why."
        return bool(tree.attrs["reliable"]), str(tree.attrs.get("reliability", unsaid))
    return judge(found, tree["posterior"].sizes["chain"], _diverging(tree))


def _exact(arrays: Mapping[str, Any], name: str) -> xr.DataTree:
    draws = {variable(str(n)): _array(str(n), values, name) for n, values in arrays.items()}
    if not draws:
        raise ValueError(f"{name!r} is an empty mapping; expected arrays of draws by variable")
    for site, values in draws.items():
        if values.ndim < 2:
            raise ValueError(
                f"{site!r} of {name!r} has shape {values.shape}, expected draws of shape "
                "(chain, draw, ...): give independent draws one chain, values[None]"
            )
    tree = arviz_base.from_dict({"posterior": draws})
    tree.attrs = {"reliable": 1, "reliability": "exact draws, taken as such."}
    return tree


def _array(variable: str, values: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{variable!r} of {name!r} is no array ({error}); expected draws of shape "
            "(chain, draw, ...)"
        ) from error
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{variable!r} of {name!r} holds {array.dtype} values; expected real numbers"
        )
    return array


def _from_mcmc(mcmc: Any, name: str) -> xr.DataTree:
    try:
        samples = mcmc.get_samples(group_by_chain=True)
    except Exception as error:  # Pyro and NumPyro each have errors of their own for it
        raise ValueError(
            f"{name!r} is an {type(mcmc).__name__} without draws ({type(error).__name__}: {error});"
            " has its run(...) been called?"
        ) from error
    if not samples:
        raise ValueError(f"{name!r} is an {type(mcmc).__name__} without draws of any site")
    groups = {"posterior": {variable(n): np.asarray(x) for n, x in samples.items()}}
    diverging = _divergences(mcmc, groups["posterior"])
    if diverging is not None:
        groups["sample_stats"] = {"diverging": diverging}
    return arviz_base.from_dict(groups)


def _divergences(mcmc: Any, draws: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Which transitions diverged, (chain, draw), where the sampler says so."""
    if hasattr(mcmc, "get_extra_fields"):  # NumPyro
        found = mcmc.get_extra_fields(group_by_chain=True).get("diverging")
        return None if found is None else np.asarray(found)
    by_chain = mcmc.diagnostics().get("divergences")
    if by_chain is None:
        return None
    result = np.zeros(next(iter(draws.values())).shape[:2], bool)
    for chain, indices in enumerate(by_chain.values()):
        result[chain, list(indices)] = True
    return result


def _diverging(tree: xr.DataTree) -> np.ndarray | None:
    if "sample_stats" not in tree.children or "diverging" not in tree["sample_stats"]:
        return None
    return np.asarray(tree["sample_stats/diverging"], bool)
