"""What may serve as a reference, as a DataTree; and whether it can be relied on."""

from collections.abc import Mapping
from typing import Any

import arviz_base
import numpy as np
import xarray as xr

from pyro_elbo_lab.datatree import variable

MAX_R_HAT = 1.01
MAX_DIVERGENT_SHARE = 0.01


def as_tree(source: Any, name: str) -> xr.DataTree:
    """Return draws as a DataTree.

    Args:
        source: a DataTree; a mapping from variable to draws ``(chain, draw, *shape)``, taken to be
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
    if isinstance(source, Mapping):
        return _exact(source, name)
    if hasattr(source, "get_samples"):
        return _from_mcmc(source)
    raise TypeError(
        f"{name!r} is a {type(source).__name__}; expected an ArviZ DataTree, a finished MCMC, or "
        "a mapping from variable to an array of draws (chain, draw, ...)"
    )


def several(reference: Any) -> dict[str, Any]:
    """The references by name: the values of a mapping of references, or the only one.

    A mapping of arrays is one reference.
    """
    if isinstance(reference, Mapping) and not isinstance(reference, xr.DataTree):
        values = reference.values()  # a DataTree is a mapping too
        if any(isinstance(x, Mapping) or hasattr(x, "get_samples") for x in values):
            return dict(reference)
    return {"reference": reference}


def reliability(tree: xr.DataTree, worst: tuple[str, float], ess_min: float) -> tuple[bool, str]:
    """Whether a reference can be relied on, and one sentence that says why.

    A tree that has the root attribute ``reliable`` (0 or 1) has been judged, with the reason in
    ``reliability``. Any other is judged by what it holds: split R-hat of means and variances of all
    parameters, at most 1.01 (Vehtari et al. 2021) or, for chains shorter than 800 draws, what
    independent draws may show; and at most 1 % divergent transitions.

    Args:
        tree: the reference.
        worst: the parameter with the largest R-hat, and that R-hat.
        ess_min: the smallest effective sample size of any parameter.
    """
    if "reliable" in tree.attrs:
        unsaid = "the reference does not say why."
        return bool(tree.attrs["reliable"]), str(tree.attrs.get("reliability", unsaid))
    parameter, r_hat = worst
    half_chain = tree["posterior"].sizes["draw"] // 2
    complaints = []
    if not r_hat <= (limit := max(MAX_R_HAT, 1 + 4 / half_chain)):
        complaints.append(f"R-hat of {parameter} is {r_hat:.3f} (at most {limit:.2f} is good)")
    diverging = _diverging(tree)
    if diverging is not None and diverging.mean() > MAX_DIVERGENT_SHARE:
        complaints.append(
            f"{diverging.sum()} of {diverging.size} transitions diverged "
            f"(at most {MAX_DIVERGENT_SHARE:.0%} is good)"
        )
    if complaints:
        return False, f"not reliable: {'; '.join(complaints)}."
    divergences = "" if diverging is None else f", {diverging.sum()} transitions diverged"
    return True, f"reliable: R-hat is at most {r_hat:.3f}, ESS at least {ess_min:.0f}{divergences}."


def _exact(arrays: Mapping[str, Any], name: str) -> xr.DataTree:
    draws = {variable(str(site)): np.asarray(values) for site, values in arrays.items()}
    for site, values in draws.items():
        if values.ndim < 2:
            raise ValueError(
                f"{site!r} of {name!r} has shape {values.shape}, expected draws of shape "
                "(chain, draw, ...): give independent draws one chain, values[None]"
            )
    tree = arviz_base.from_dict({"posterior": draws})
    tree.attrs = {"reliable": 1, "reliability": "exact draws, taken as such."}
    return tree


def _from_mcmc(mcmc: Any) -> xr.DataTree:
    samples = mcmc.get_samples(group_by_chain=True)
    groups = {"posterior": {variable(name): np.asarray(x) for name, x in samples.items()}}
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
