"""How much worse an approximation predicts than the reference."""

import math
import warnings

import arviz_stats
import numpy as np
import xarray as xr
from scipy.special import logsumexp

from pyro_elbo_lab.statistics.importance import NO_TAIL, tail_size

COLUMNS = ("elpd_difference", "elpd_difference_se", "elpd_pareto_k")


def elpd_difference(approximation: xr.DataTree, reference: xr.DataTree) -> dict[str, float]:
    """The difference of expected log predictive densities, in nats, and its error.

    Both are estimated by PSIS leave-one-out cross-validation (Vehtari, Gelman & Gabry 2017) from
    the draws as they are, without importance weights for the approximation: negative where it
    predicts new data worse than the reference does. The standard error is that of the sum of the
    differences over the observations. `elpd_pareto_k` is the largest Pareto k of both sides;
    above 0.7 the estimates are not to be trusted.

    All are NaN where a side has no group `log_likelihood`, or the observations differ.
    """
    shapes = [_shapes(tree) for tree in (approximation, reference)]
    if not shapes[0] or shapes[0] != shapes[1]:
        return dict.fromkeys(COLUMNS, math.nan)
    ours, theirs = (_pointwise(tree, list(shapes[0])) for tree in (approximation, reference))
    difference = ours[0] - theirs[0]
    size = difference.size
    se = math.sqrt(size * difference.var(ddof=1)) if size > 1 else math.nan
    found = float(difference.sum()), se, float(max(ours[1].max(), theirs[1].max()))
    return dict(zip(COLUMNS, found, strict=True))


def _shapes(tree: xr.DataTree) -> dict[str, tuple[int, ...]]:
    if "log_likelihood" not in tree.children:
        return {}
    return {str(name): x.shape[2:] for name, x in tree["log_likelihood"].data_vars.items()}


def _pointwise(tree: xr.DataTree, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """ELPD and Pareto k of each observation.

    One whose likelihood is the same at every draw but for rounding, of a point or masked, needs no
    leaving out; nor do weights without a tail need smoothing.
    """
    arrays = [tree["log_likelihood"][n].transpose("chain", "draw", ...).values for n in names]
    values = np.concatenate([x.reshape(*x.shape[:2], -1) for x in arrays], -1)
    elpd, k = _harmonic_mean(values), np.zeros(values.shape[-1])
    varying = _have_tails(values)
    if not varying.any():
        return elpd, k
    observations = xr.Dataset({"y": (("chain", "draw", "observation"), values[..., varying])})
    group = xr.DataTree.from_dict({"log_likelihood": observations})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of large Pareto k, which is returned
        # The relative efficiency of MCMC draws matters little, and would take the posterior.
        found = arviz_stats.loo(group, pointwise=True, var_name="y", reff=1.0)
    elpd[varying], k[varying] = found.elpd_i.values, found.pareto_k.values
    return elpd, k


def _harmonic_mean(log_likelihood: np.ndarray) -> np.ndarray:
    """Leave-one-out density of each observation with unsmoothed weights 1 / p, in nats."""
    flat = -log_likelihood.reshape(-1, log_likelihood.shape[-1]).astype(np.float64)
    return math.log(len(flat)) - logsumexp(flat, axis=0)


def _have_tails(log_likelihood: np.ndarray) -> np.ndarray:
    """The observations whose largest weights differ by more than rounding."""
    flat = -log_likelihood.reshape(-1, log_likelihood.shape[-1])
    first = len(flat) - max(1, tail_size(len(flat)))
    tail = np.partition(flat, first, axis=0)[first:]
    return np.ptp(tail, axis=0) > NO_TAIL
