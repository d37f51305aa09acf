"""Approximations of a posterior beside a reference: distances, diagnostics, verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from pyro_elbo_lab import _draws
from pyro_elbo_lab._dataset import DIAGNOSTICS, assemble
from pyro_elbo_lab.verdict import Verdict, judge

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
    "wasserstein_floor",
    "coverage",
    "coverage_floor",
)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        dataset: every number, over the dimensions ``approximation`` and ``parameter``; NaN where
            an approximation lacks a parameter or log-weights. Each parameter is ``element`` (a
            flat index) of ``variable``.
        approximations: the compared DataTrees by name.
        reference: the DataTree they are compared with.
        findings: the :class:`~pyro_elbo_lab.verdict.Verdict` of each approximation.
        notes: what was left out of the comparison and why, one sentence each.
        reference_reliable: False if the reference says of itself that it is not.
        reference_note: what the reference says about its reliability.
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

        Columns: ``mean_error`` in reference sds, ``sd_ratio``, ``wasserstein`` in reference sds,
        ``coverage`` of the reference by the central 90 % interval. ``*_mcse`` is the Monte Carlo
        standard error of both sides together, ``*_floor`` the distance from perfect agreement (a
        mean error of 0, sd ratio of 1, Wasserstein distance of 0, coverage of 0.9) that two
        halves of the reference show.
        """
        columns = {
            name: self.dataset[name].broadcast_like(self.dataset["mean_error"]).to_series()
            for name in _TABLE
        }
        return pd.DataFrame(columns).dropna(subset=["mean_error"])

    @property
    def summary(self) -> pd.DataFrame:
        """One row per approximation: verdict, k-hat, ELBO and evidence in nats, worst errors."""
        diagnostics = self.dataset[list(DIAGNOSTICS)].to_dataframe()
        worst = pd.DataFrame(
            {
                "max_abs_mean_error": abs(self.dataset["mean_error"]).max("parameter"),
                "min_sd_ratio": self.dataset["sd_ratio"].min("parameter"),
                "max_sd_ratio": self.dataset["sd_ratio"].max("parameter"),
                "max_wasserstein": self.dataset["wasserstein"].max("parameter"),
            },
            index=diagnostics.index,
        )
        kinds = pd.Series({name: found.kind for name, found in self.findings.items()})
        return pd.concat([kinds.rename("verdict"), diagnostics, worst], axis=1)

    @property
    def verdicts(self) -> dict[str, str]:
        """One sentence per approximation; :func:`pyro_elbo_lab.verdict.judge` has the rules."""
        return {name: found.sentence for name, found in self.findings.items()}

    def draws(self, parameter: str) -> dict[str, np.ndarray]:
        """Return all draws of one parameter, by approximation and under ``"reference"``.

        Approximations that lack the parameter are left out.
        """
        found = self.dataset.sel(parameter=parameter)
        variable, index = str(found["variable"].item()), np.array([found["element"].item()])
        target = self.reference["posterior"][variable].transpose("chain", "draw", ...)
        result = {"reference": _draws.elements(target, index).ravel()}
        for name, tree in self.approximations.items():
            if variable in tree["posterior"]:
                array = tree["posterior"][variable].transpose("chain", "draw", ...)
                array = _draws.aligned(array, target, name)
                result[name] = _draws.elements(array, index).ravel()
        return result

    def plot_forest(self, max_parameters: int = 12) -> Figure:
        """Draw intervals; see :func:`pyro_elbo_lab.plots.plot_forest`."""
        from pyro_elbo_lab import plots  # the one upward import: plots draws Comparisons

        return plots.plot_forest(self, max_parameters)

    def plot_densities(self, max_parameters: int = 12) -> Figure:
        """Draw marginal densities; see :func:`pyro_elbo_lab.plots.plot_densities`."""
        from pyro_elbo_lab import plots

        return plots.plot_densities(self, max_parameters)

    def save(self, path: str | Path) -> Path:
        """Write ``comparison.nc``, ``table.csv`` and ``summary.csv`` into folder ``path``."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self.dataset.to_netcdf(folder / "comparison.nc", engine="h5netcdf")
        self.table.to_csv(folder / "table.csv")
        self.summary.to_csv(folder / "summary.csv")
        return folder

    def __str__(self) -> str:
        lines = [self.summary.round(3).to_string(), ""]
        lines += [f"{name}: {sentence}" for name, sentence in self.verdicts.items()]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])

    __repr__ = __str__


def compare(approximations: Mapping[str, xr.DataTree], reference: xr.DataTree) -> Comparison:
    """Compare draws from approximations of a posterior with draws from a reference.

    Each parameter (scalar element of a variable) that both sides have is compared in units of
    the reference's standard deviation, and each distance stands beside the Monte Carlo error or
    the noise floor it must exceed to mean anything. See :attr:`Comparison.table`.

    Args:
        approximations: ArviZ DataTrees by name, each with a ``posterior`` group over chain and
            draw and, for k-hat, ELBO and evidence, independent draws of
            ``sample_stats.log_weight`` = log p(x, z) - log q(z).
        reference: DataTree with a ``posterior`` group. A root attribute ``reliable`` = 0 marks
            it as unfit, for the reason in the attribute ``reliability``.

    Raises:
        ValueError: if a posterior group is missing, has a NaN or infinite draw or too few draws;
            if shapes or coordinates disagree; if no parameter is common to both sides.

    >>> rng = np.random.default_rng(0)
    >>> def tree(mu):
    ...     posterior = xr.Dataset({"mu": (("chain", "draw"), mu)})
    ...     return xr.DataTree.from_dict({"posterior": posterior})
    >>> comparison = compare(
    ...     {"too narrow": tree(rng.normal(scale=0.5, size=(1, 4000)))},
    ...     reference=tree(rng.normal(size=(4, 1000))),
    ... )
    >>> comparison.table["sd_ratio"].round(1).tolist()
    [0.5]
    >>> comparison.findings["too narrow"].kind
    'under-dispersed'
    """
    if not approximations:
        raise ValueError("there is no approximation to compare: pass a mapping from name to tree")
    if "reference" in approximations:
        raise ValueError("'reference' is the name of the reference; give the approximation another")
    dataset, rows, notes = assemble(approximations, reference)
    reliable = bool(reference.attrs.get("reliable", 1))
    note = str(reference.attrs.get("reliability", "the reference does not state its reliability"))
    findings = {name: judge(row, reliable, note) for name, row in rows.items()}
    dataset.attrs = {"reference_reliable": int(reliable), "reference_note": note}
    return Comparison(
        dataset, dict(approximations), reference, findings, tuple(notes), reliable, note
    )
