"""What the log-weights of a guide's draws say, and what they can repair.

The trees are those of `from_guide`: `sample_stats` holds log p, log q and log p - log q of every
draw, and of every cell of local plates.
"""

from typing import Any

import arviz_stats
import numpy as np
import xarray as xr

from pyro_elbo_lab.programs.arguments import check_count
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.statistics.importance import ImportanceDiagnostics, check_number, diagnose, k_hat

__all__ = ["importance_diagnostics", "loo_approximate_posterior", "resampled", "weighted"]

_SAMPLE = ("chain", "draw")
_CELLS = "cell_log_weight"
_GROUPS_OF_DRAWS = ("posterior", "sample_stats", "log_likelihood", "posterior_predictive")
_OF_THE_GUIDE = ("log_q", "log_weight", _CELLS)
_PROBABILITIES = (0.05, 0.5, 0.95)


def importance_diagnostics(tree: xr.DataTree) -> xr.Dataset:
    """How far a guide's importance weights can be relied on, all latents together and cell by cell.

    The joint k-hat says whether the guide, reweighted, stands for the posterior of everything. It
    grows with the number of latents. A cell's is that of the weights of its own latents and data
    given the shared latents, at the guide's draws of these: it tells where the local part of a
    guide is poor, and is what the bounds of `ImportanceWeightedELBO` rest on.

    Args:
        tree: what `from_guide` returned.

    Returns:
        `k_hat` and `weight_ess`, the effective number of weighted draws, of the joint weights;
        `cell_k_hat` over the local plates, or one such variable for each set of them; and
        `k_hat_threshold`, min(1 - 1/log10 S, 0.7) for S draws.

    Raises:
        ValueError: a tree without log-weights, fewer than 25 draws, log-weights that are NaN or
            +∞, a guide that sets latents to single values (its weights mean nothing).

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, JMLR
        25(72); Yao, Vehtari, Simpson and Gelman (2018), Yes, but did it work?, ICML.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_elbo_lab.inference.trees.convert import from_guide
        >>> def program():
        ...     with pyro.plate("school", 8):
        ...         pyro.sample("effect", dist.Normal(0.0, 1.0))
        >>> found = importance_diagnostics(from_guide(program, program))
        >>> found["cell_k_hat"].sizes["school"], float(found["k_hat"])  # the guide is exact
        (8, 0.0)
    """
    joint = _joint(tree)
    cells = {
        str(name): array.transpose(*_SAMPLE, ...)
        for name, array in tree["sample_stats"].data_vars.items()
        if str(name).startswith(_CELLS)
    }
    per_cell = {
        name.replace(_CELLS, "cell_k_hat"): xr.DataArray(
            k_hat(array.values), dims=array.dims[2:], coords=_without_sample(array).coords
        )
        for name, array in cells.items()
    }
    return xr.Dataset(_numbers(joint) | per_cell)


def resampled(tree: xr.DataTree, num_draws: int | None = None, seed: int = 0) -> xr.DataTree:
    """Draws of a guide, resampled in proportion to their importance weights.

    Pareto-smoothed weights, stratified (one uniform number for each of equal slices of the total
    weight), so that a draw of weight w appears at least ⌊w num_draws⌋ - 1 times. Copies of one draw
    stand side by side, where ArviZ's effective sample size takes notice of them. What `resampled`
    cannot repair is a guide whose k-hat is above its threshold: regions that the guide never
    enters stay empty.

    Args:
        tree: what `from_guide` returned.
        num_draws: how many draws to make, by default as many as there are.
        seed: of the resampling.

    Returns:
        A tree of one chain with every group of `tree`, the same draws in each that has draws of
        the posterior. Densities of the guide (`log_q` and log-weights) are dropped, as they are
        not those of the new draws. Attributes: `inference`, `k_hat`, `k_hat_threshold`,
        `weight_ess` and `distinct_draws`.

    Raises:
        ValueError: as `importance_diagnostics`; `num_draws` is below 1.

    Warns:
        UserWarning: k-hat is above its threshold.

    References:
        Yao, Vehtari, Simpson and Gelman (2018), Yes, but did it work?, ICML; Kitagawa (1996),
        Monte Carlo filter and smoother, JCGS 5(1), for stratified resampling.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo_lab.inference.trees.convert import from_guide
        >>> def model():
        ...     pyro.sample("z", dist.Normal(1.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.0, 2.0))
        >>> pyro.set_rng_seed(0)
        >>> tree = from_guide(guide, model, num_samples=20_000)
        >>> float(resampled(tree)["posterior"]["z"].mean().round(1))
        1.0
    """
    if num_draws is not None:
        check_count("num_draws", num_draws)
    joint = _believed(tree)
    size = num_draws or len(joint.weights)
    rng = np.random.default_rng(seed)
    places = (np.arange(size) + rng.uniform(size=size)) / size
    total = np.cumsum(joint.weights)
    index = np.searchsorted(total / total[-1], places)
    groups = {
        name: _picked(child.to_dataset(), index) if name in _GROUPS_OF_DRAWS else child.to_dataset()
        for name, child in tree.children.items()
    }
    stats = groups["sample_stats"]
    gone = [name for name in stats.data_vars if str(name).startswith(_OF_THE_GUIDE)]
    groups["sample_stats"] = stats.drop_vars(gone)
    found = xr.DataTree.from_dict(groups)
    found.attrs = {
        **tree.attrs,
        "inference": "guide, resampled by importance weights",
        **_numbers(joint),
        "distinct_draws": len(np.unique(index)),
    }
    return found


def weighted(tree: xr.DataTree, probabilities: tuple[float, ...] = _PROBABILITIES) -> xr.DataTree:
    """Summaries of the importance-weighted posterior, without the noise of resampling.

    With Pareto-smoothed weights w that sum to one, the mean m is Σ w z, the variance
    Σ w (z - m)², and a quantile is where the sum of the weights in order of z reaches its
    probability. The Monte Carlo error of the mean is √Σ w² (z - m)².

    Args:
        tree: what `from_guide` returned.
        probabilities: of the quantiles.

    Returns:
        A tree whose group `posterior` has the variables of `tree`, with the dimension `statistic`
        ("mean", "sd", "mcse_mean", "q0.05", ...) in place of chain and draw. Attributes `k_hat`,
        `k_hat_threshold` and `weight_ess`.

    Raises:
        ValueError: as `importance_diagnostics`; a probability outside of 0 to 1.

    Warns:
        UserWarning: k-hat is above its threshold.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, JMLR
        25(72); Owen (2013), Monte Carlo theory, methods and examples, chapter 9, for the error.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo_lab.inference.trees.convert import from_guide
        >>> def model():
        ...     pyro.sample("z", dist.Normal(1.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.0, 2.0))
        >>> pyro.set_rng_seed(0)
        >>> found = weighted(from_guide(guide, model, num_samples=20_000))["posterior"]["z"]
        >>> found.sel(statistic=["mean", "sd", "q0.05"]).values.round(1)
        array([ 1. ,  1. , -0.6])
    """
    if not all(0 <= p <= 1 for p in probabilities):
        raise ValueError(f"probabilities must be from 0 to 1, got {probabilities}")
    joint = _believed(tree)
    labels = ["mean", "sd", "mcse_mean", *(f"q{p:g}" for p in probabilities)]

    def summary(array: xr.DataArray) -> xr.DataArray:
        draws = array.transpose(*_SAMPLE, ...)
        flat = draws.values.reshape(len(joint.weights), -1).astype(np.float64)
        found = _summary(flat, joint.weights, probabilities)
        rest = _without_sample(draws)
        shape = (len(labels), *rest.shape)
        dims = ("statistic", *rest.dims)
        coords = {**rest.coords, "statistic": labels}
        return xr.DataArray(found.reshape(shape), dims=dims, coords=coords)

    variables = {name: summary(array) for name, array in tree["posterior"].data_vars.items()}
    result = xr.DataTree.from_dict({"posterior": xr.Dataset(variables)})
    result.attrs = _numbers(joint)
    return result


def loo_approximate_posterior(
    tree: xr.DataTree, var_name: str | None = None, pointwise: bool = True
) -> Any:
    """Leave-one-out predictive density of a guide's posterior, corrected to that of the model.

    PSIS-LOO with the ratios p(z | x) / (q(z) p(x_i | z)), which turns draws of the guide into draws
    of the posterior without observation i (`arviz_stats.loo_approximate_posterior` does the
    computation). `az.loo` on the same tree takes the guide's draws for the posterior's.

    Args:
        tree: what `from_guide` returned.
        var_name: the observed site, where there are several.
        pointwise: whether the result has `elpd_i` and `pareto_k` of each observation, as
            `az.compare` needs.

    Returns:
        ArviZ's `ELPDDataLOO`: `elpd` in nats, its `se`, `warning` where some k-hat is too
        large, and `approx_posterior=True`. Its `p` compares with the in-sample fit of the
        guide, not of the posterior.

    Raises:
        ValueError: as `importance_diagnostics`; a tree without `log_likelihood`, or with several
            observed sites and no `var_name`.

    References:
        Magnusson, Riis Andersen, Jonasson and Vehtari (2019), Bayesian leave-one-out
        cross-validation for large data, ICML; Vehtari, Gelman and Gabry (2017), Practical Bayesian
        model evaluation using leave-one-out cross-validation and WAIC, Statistics and Computing 27.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo_lab.inference.trees.convert import from_guide
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("patient", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(x.mean(), 0.7))
        >>> pyro.set_rng_seed(0)
        >>> tree = from_guide(guide, model, torch.tensor([0.0, 1.0, 2.0]))
        >>> f"{loo_approximate_posterior(tree).elpd:.1f}"
        '-4.6'
    """
    _joint(tree)
    if "log_likelihood" not in tree.children:
        why = tree.attrs.get("notes", "from_guide makes it")
        raise ValueError(f"the tree has no group log_likelihood ({why})")
    observed = sorted(map(str, tree["log_likelihood"].data_vars))
    if var_name not in (observed if len(observed) > 1 else [None, *observed]):
        raise ValueError(f"var_name={var_name!r}: expected one of the observed sites {observed}")
    stats = tree["sample_stats"]
    return arviz_stats.loo_approximate_posterior(
        tree, stats["log_p"], stats["log_q"], pointwise=pointwise, var_name=var_name
    )


def _joint(tree: xr.DataTree) -> ImportanceDiagnostics:
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"expected a DataTree as from_guide returns it, got {type(tree).__name__}")
    if "sample_stats" not in tree.children or "log_weight" not in tree["sample_stats"].data_vars:
        notes = tree.attrs.get("notes")
        raise ValueError(
            "the tree has no sample_stats.log_weight: importance weights are those of a guide's "
            f"draws, as from_guide returns them{f' (its notes: {notes})' if notes else ''}"
        )
    if points := tree.attrs.get("points"):
        raise ValueError(
            f"the guide sets {points} to single values (AutoDelta, a Delta site): its draws have "
            "no importance weights. Use a guide with a density, such as AutoNormal"
        )
    log_w = tree["sample_stats"]["log_weight"].transpose(*_SAMPLE).values.ravel()
    check_number(log_w.size)
    return diagnose(log_w)


def _believed(tree: xr.DataTree) -> ImportanceDiagnostics:
    joint = _joint(tree)
    if joint.k_hat > joint.k_hat_threshold:
        warn(
            f"k-hat is {joint.k_hat:.2f}, above {joint.k_hat_threshold:.2f}: weighted draws of "
            "this guide do not stand for the posterior. Use a guide that covers more of it."
        )
    return joint


def _numbers(joint: ImportanceDiagnostics) -> dict[str, Any]:
    return {name: getattr(joint, name) for name in ("k_hat", "k_hat_threshold", "weight_ess")}


def _without_sample(array: xr.DataArray) -> xr.DataArray:
    """One draw, for its dimensions and their labels."""
    return array.isel(chain=0, draw=0).drop_vars(_SAMPLE, errors="ignore")


def _picked(group: xr.Dataset, index: np.ndarray) -> xr.Dataset:
    def pick(array: xr.DataArray) -> xr.DataArray:
        array = array.transpose(*_SAMPLE, ...)
        values = array.values.reshape(-1, *array.shape[2:])[index][None]
        rest = _without_sample(array)
        coords = {**rest.coords, "chain": [0], "draw": np.arange(len(index))}
        return xr.DataArray(values, dims=array.dims, coords=coords, attrs=array.attrs)

    return xr.Dataset({n: pick(x) for n, x in group.data_vars.items()}, attrs=group.attrs)


def _summary(flat: np.ndarray, weights: np.ndarray, probabilities: tuple[float, ...]) -> np.ndarray:
    """Statistics of draws (S, P) with weights (S,) that sum to one: (statistics, P)."""
    mean = weights @ flat
    deviation = (flat - mean) ** 2
    rows = [mean, np.sqrt(weights @ deviation), np.sqrt(weights**2 @ deviation)]
    if probabilities:
        at = np.quantile(flat, probabilities, axis=0, weights=weights, method="inverted_cdf")
        rows.extend(at)
    return np.stack(rows)
