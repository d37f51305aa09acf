"""Approximations of a posterior beside a reference: distances, diagnostics, verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from pyro_elbo_lab.inference.storage.files import replacing
from pyro_elbo_lab.inference.storage.netcdf import write_netcdf
from pyro_elbo_lab.statistics.distances import QUANTILES
from pyro_elbo_lab.trust.comparison import posteriors
from pyro_elbo_lab.trust.comparison.dataset import assemble
from pyro_elbo_lab.trust.comparison.scalars import SCALARS, cost
from pyro_elbo_lab.trust.comparison.sources import as_tree, reliability, several
from pyro_elbo_lab.trust.comparison.verdict import Verdict, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TABLE = (
    "mean_error",
    "mean_error_mcse",
    "mean_error_floor",
    "sd_ratio",
    "sd_ratio_mcse",
    "sd_ratio_floor",
    "wasserstein",
    "wasserstein_mcse",
    "wasserstein_floor",
    *QUANTILES,
    "quantile_floor",
    "coverage_50",
    "coverage_50_floor",
    "coverage",
    "coverage_floor",
    "middle_ratio",
    "middle_ratio_mcse",
    "middle_ratio_floor",
    "tail_ratio",
    "tail_ratio_mcse",
    "tail_ratio_floor",
    "correlation_error",
    "correlation_error_mcse",
    "correlation_error_floor",
)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What `compare` found.

    Attributes:
        dataset: every number, over the dimensions `approximation` and `parameter`; NaN where
            an approximation lacks a parameter or log-weights. Each parameter is `element` (a
            flat index) of `variable`. Attributes: `reference_reliable` and `reference_note`,
            `reference_seconds` and `reference_gradient_evaluations` (NaN if unknown).
        approximations: the compared DataTrees by name, further references at the end.
        reference: the DataTree they are compared with.
        findings: the `Verdict` of each approximation.
        notes: what was left out of the comparison and why, one sentence each.
        reference_reliable: False if the reference cannot be relied on.
        reference_note: why it can or cannot.
    """

    dataset: xr.Dataset
    approximations: Mapping[str, xr.DataTree]
    reference: xr.DataTree
    findings: Mapping[str, Verdict]
    notes: tuple[str, ...]
    reference_reliable: bool
    reference_note: str

    @property
    def table(self) -> pd.DataFrame:
        """One row per approximation and parameter.

        Columns, of which those in sds are in reference sds:

        * `mean_error`: difference of means, in sds; `sd_ratio`; `wasserstein`: 1-Wasserstein
          distance, in sds;
        * `quantile_05_error` to `quantile_95_error`: differences of quantiles, in sds;
        * `coverage_50`, `coverage`: share of the reference inside the central 50 % and 90 %
          interval;
        * `middle_ratio`, `tail_ratio`: widths of the central 50 % and 98 % intervals over those
          of the reference;
        * `correlation_error`: largest absolute error of the correlations with the other
          parameters, or with 100 of them if there are more.

        `*_mcse` is the Monte Carlo standard error of both sides together, `*_floor` the
        distance from perfect agreement (an error or distance of 0, a ratio of 1, a coverage of 0.5
        and 0.9) that two halves of the reference show; `quantile_floor` is the largest over the
        quantiles.
        """
        columns = {
            name: self.dataset[name].broadcast_like(self.dataset["mean_error"]).to_series()
            for name in _TABLE
        }
        return pd.DataFrame(columns).dropna(subset=["mean_error"])

    @property
    def summary(self) -> pd.DataFrame:
        """One row per approximation.

        Columns: `verdict`; k-hat, ELBO and evidence in nats; joint distances of
        `joint_parameters` parameters and `joint_draws` nearly independent draws, as
        `statistics.joint.joint_distances` defines them, with `_floor` what two samples
        of one distribution exceed with probability 5 % and `_p` the p-value; the difference of
        the ELPD by leave-one-out cross-validation, in nats, negative where it predicts worse;
        `seconds` and `gradient_evaluations`; by how many nats the loss fell in the last half
        of training; and the worst errors over all parameters.
        """
        diagnostics = self.dataset[list(SCALARS)].to_dataframe()
        worst = pd.DataFrame(
            {
                "max_abs_mean_error": abs(self.dataset["mean_error"]).max("parameter"),
                "min_sd_ratio": self.dataset["sd_ratio"].min("parameter"),
                "max_sd_ratio": self.dataset["sd_ratio"].max("parameter"),
                "max_wasserstein": self.dataset["wasserstein"].max("parameter"),
                "max_correlation_error": self.dataset["correlation_error"].max("parameter"),
            },
            index=diagnostics.index,
        )
        kinds = pd.Series({name: found.kind for name, found in self.findings.items()})
        return pd.concat([kinds.rename("verdict"), diagnostics, worst], axis=1)

    @property
    def verdicts(self) -> dict[str, str]:
        """One sentence per approximation; `verdict.judge` has the rules."""
        return {name: found.sentence for name, found in self.findings.items()}

    def draws(self, parameter: str) -> dict[str, np.ndarray]:
        """All draws of one parameter, by approximation and under `"reference"`.

        Approximations that lack the parameter are left out.
        """
        found = self.dataset.sel(parameter=parameter)
        variable, index = str(found["variable"].item()), np.array([found["element"].item()])
        target = self.reference["posterior"][variable].transpose("chain", "draw", ...)
        result = {"reference": posteriors.elements(target, index).ravel()}
        for name, tree in self.approximations.items():
            if variable in tree["posterior"]:
                array = tree["posterior"][variable].transpose("chain", "draw", ...)
                array = posteriors.aligned(array, target, name)
                result[name] = posteriors.elements(array, index).ravel()
        return result

    def plot_forest(self, max_parameters: int = 12) -> Figure:
        """Draw intervals; see `pyro_elbo_lab.plot_forest`."""
        from pyro_elbo_lab.figures.marginals import plot_forest

        return plot_forest(self, max_parameters)

    def plot_densities(self, max_parameters: int = 12) -> Figure:
        """Draw marginal densities; see `pyro_elbo_lab.plot_densities`."""
        from pyro_elbo_lab.figures.marginals import plot_densities

        return plot_densities(self, max_parameters)

    def save(self, path: str | Path) -> Path:
        """Write `comparison.nc`, `table.csv` and `summary.csv` into folder `path`.

        All of them are replaced, or none if one cannot be written.

        Raises:
            OSError: if the folder or a file cannot be written.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        with (
            replacing(folder / "comparison.nc") as dataset,
            replacing(folder / "table.csv") as table,
            replacing(folder / "summary.csv") as summary,
        ):
            write_netcdf(self.dataset, dataset)
            self.table.to_csv(table)
            self.summary.to_csv(summary)
        return folder

    def __str__(self) -> str:
        lines = [self.summary.round(3).to_string(), ""]
        lines += [f"{name}: {sentence}" for name, sentence in self.verdicts.items()]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])

    __repr__ = __str__


def compare(
    approximations: Mapping[str, Any],
    reference: Any,
    *,
    losses: Mapping[str, np.ndarray] | None = None,
) -> Comparison:
    """Compare draws from approximations of a posterior with draws from a reference.

    Each parameter (scalar element of a variable) that both sides have is compared in units of
    the reference's standard deviation, and each distance stands beside the Monte Carlo error or
    the noise floor it must exceed to mean anything. See `Comparison.table`. Joint distances
    stand in `Comparison.summary`; they use at most 100 parameters, evenly spaced, and 1000
    draws of each side.

    Parameters are read 1024 at a time, and a DataTree that was opened from a file
    (`xarray.open_datatree`) is read piece by piece: beyond the draws that the caller holds in
    memory, the working memory stays below 0.5 GB for chains of 4 x 1000 draws however many
    parameters there are.

    Args:
        approximations: ArviZ DataTrees by name, each with a `posterior` group over chain and
            draw and, where known, independent draws of `sample_stats.log_weight` =
            log p(x, z) - log q(z), for k-hat, ELBO and evidence; a group `log_likelihood`, for
            the predictive difference; a group `training` with `loss` over steps; and root
            attributes `seconds` and `gradient_evaluations`. Or, without any of these, mappings
            from variable to arrays `(chain, draw, *shape)`.
        reference: a DataTree with a `posterior` group; a finished `MCMC` of Pyro or NumPyro; a
            mapping from variable to arrays `(chain, draw, *shape)`, which count as exact draws;
            or several of these by name. Of several, the first is the reference, and the others
            are compared with it like approximations, which shows how far references differ. A root
            attribute `reliable` = 0 marks a DataTree as unfit, for the reason in the attribute
            `reliability`; without it, R-hat, effective sample sizes and divergent transitions
            decide, as they do in `nuts`.
        losses: training losses by approximation, `(num_steps,)` in nats, which tell a fit that
            was stopped too early; they take precedence over the group `training`.

    Raises:
        ValueError: if a posterior group is missing, has a NaN or infinite draw or too few draws;
            if shapes or coordinates disagree; if no parameter is common to both sides; if losses
            are given for an approximation that does not exist.
        TypeError: if the reference or an approximation is none of the above.

    >>> rng = np.random.default_rng(0)
    >>> def tree(mu):
    ...     posterior = xr.Dataset({"mu": (("chain", "draw"), mu)})
    ...     return xr.DataTree.from_dict({"posterior": posterior})
    >>> comparison = compare(
    ...     {"too narrow": tree(rng.normal(scale=0.5, size=(1, 4000)))},
    ...     reference={"mu": rng.normal(size=(4, 1000))},
    ... )
    >>> comparison.table["sd_ratio"].round(1).tolist()
    [0.5]
    >>> comparison.findings["too narrow"].kind
    'under-dispersed'
    """
    if not isinstance(approximations, Mapping) or isinstance(approximations, xr.DataTree):
        raise TypeError(
            f"approximations is a {type(approximations).__name__}; expected a mapping from name to "
            "DataTree, such as {'mean field': tree}"
        )
    references = several(reference)
    trees = {name: as_tree(source, name) for name, source in references.items()}
    chosen = next(iter(trees))
    ours = {name: as_tree(source, name) for name, source in approximations.items()}
    compared = _together(ours, {n: tree for n, tree in trees.items() if n != chosen})
    _check_names(compared, losses or {})
    target = trees[chosen]
    found = assemble(compared, target, losses or {})
    reliable, note = reliability(target, found.worst)
    findings = {
        name: judge(found.dataset.sel(approximation=name), reliable, note) for name in compared
    }
    found.dataset.attrs = {"reference_reliable": int(reliable), "reference_note": note}
    found.dataset.attrs |= {f"reference_{key}": value for key, value in cost(target).items()}
    notes = tuple(found.notes)
    return Comparison(found.dataset, compared, target, findings, notes, reliable, note)


def _together(
    approximations: Mapping[str, xr.DataTree], others: Mapping[str, xr.DataTree]
) -> dict[str, xr.DataTree]:
    """Approximations and all references but the first."""
    if both := sorted(set(approximations) & set(others)):
        raise ValueError(f"{both[0]!r} names both an approximation and a reference")
    return {**approximations, **others}


def _check_names(compared: Mapping[str, xr.DataTree], losses: Mapping[str, np.ndarray]) -> None:
    if not compared:
        raise ValueError("there is no approximation to compare: pass a mapping from name to tree")
    if "reference" in compared:
        raise ValueError("'reference' is the name of the reference; give the approximation another")
    if unknown := sorted(set(losses) - set(compared)):
        raise ValueError(f"losses of {unknown[0]!r}, which is none of {sorted(compared)}")
