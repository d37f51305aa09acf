"""The tables of a report, of whatever numbers a comparison has."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from pyro_elbo_lab.figures.evidence import Sandwich, width
from pyro_elbo_lab.report.page import markup
from pyro_elbo_lab.report.page.markup import Cell
from pyro_elbo_lab.report.page.numbers import count, number, with_error
from pyro_elbo_lab.trust.comparison.compare import Comparison

_ROWS = 120
_FEWEST_ROWS = 10


@dataclass(frozen=True)
class Column:
    """A column of a comparison's table or summary, as the page shows it.

    Attributes:
        label: its header.
        key: its name in the comparison.
        brackets: the name of a number to show in brackets.
        agreement: the value that perfect agreement has; what is farther from it than noise
            explains, the column `{key}_floor` included, is bold.
        signed: whether positive numbers carry a sign.
        counts: whether the numbers are whole.
    """

    label: str
    key: str
    brackets: str = ""
    agreement: float | None = None
    signed: bool = False
    counts: bool = False

    def cell(self, row: Mapping[str, Any]) -> Cell:
        """The number of a row, with its standard error where there is one."""
        value = float(row[self.key])
        if np.isnan(value) or self.counts:
            return Cell(count(value), value)
        error = next((float(row[k]) for k in self._error_keys if k in row), np.nan)
        text = with_error(value, error, self.signed)
        if self._stands_out(value, error, float(row.get(f"{self.key}_floor", np.nan))):
            shown, *rest = text.split(" ", 1)
            text = " ".join([f"<b>{shown}</b>", *rest])
        if self.brackets in row:
            text += f" <small>({number(float(row[self.brackets]))})</small>"
        return Cell(text, value)

    @property
    def _error_keys(self) -> tuple[str, str]:
        return f"{self.key}_mcse", f"{self.key}_se"

    def _stands_out(self, value: float, error: float, floor: float) -> bool:
        if self.agreement is None:
            return False
        noise = np.nan_to_num([2 * floor, 3 * error])
        return abs(value - self.agreement) > noise.max()


SUMMARY = (
    Column("k-hat", "k_hat", brackets="k_hat_threshold"),
    Column("ELBO", "elbo"),
    Column("log evidence", "log_evidence"),
    Column("mean error", "max_abs_mean_error"),
    Column("narrowest sd ratio", "min_sd_ratio"),
    Column("widest sd ratio", "max_sd_ratio"),
    Column("Wasserstein", "max_wasserstein"),
    Column("correlation error", "max_correlation_error"),
)
JOINT = (
    Column("sliced Wasserstein", "sliced_wasserstein", brackets="sliced_wasserstein_floor"),
    Column("MMD", "mmd", brackets="mmd_floor"),
    Column("energy distance", "energy_distance", brackets="energy_distance_floor"),
    Column("classifier accuracy", "c2st"),
)
PREDICTIVE = (
    Column("ELPD difference", "elpd_difference", signed=True),
    Column("largest Pareto k", "elpd_pareto_k"),
)
COST = (
    Column("seconds", "seconds"),
    Column("gradient evaluations", "gradient_evaluations", counts=True),
)
_PARAMETERS = (
    Column("mean error", "mean_error", agreement=0.0, signed=True),
    Column("sd ratio", "sd_ratio", agreement=1.0),
    Column("Wasserstein", "wasserstein", agreement=0.0),
    Column("90 % coverage", "coverage", agreement=0.9),
    Column("tail ratio", "tail_ratio", agreement=1.0),
    Column("correlation error", "correlation_error", agreement=0.0),
)


def summary(
    caption: str,
    columns: Sequence[Column],
    rows: Mapping[str, Mapping[str, Any]],
    swatches: Mapping[str, str],
) -> str:
    """A table with a row for each name, of those columns in which some row has a number."""
    shown = [
        column
        for column in columns
        if any(column.key in row and not np.isnan(row[column.key]) for row in rows.values())
    ]
    if not shown:
        return ""
    header = ["approximation", *(column.label for column in shown)]
    cells = [
        [
            Cell(swatches.get(name, "") + escape(name), name),
            *(column.cell(row) for column in shown),
        ]
        for name, row in rows.items()
    ]
    return markup.table(caption, header, cells)


def evidence(bounds: Mapping[str, Sandwich], swatches: Mapping[str, str]) -> str:
    """The best believable bounds of each approximation, and how far they are apart."""
    columns = (
        Column("lower bound", "lower"),
        Column("upper bound", "upper"),
        Column("width", "width"),
    )
    rows = {name: _row_of(found) for name, found in bounds.items()}
    return summary("Best believable bounds of the log evidence, in nats", columns, rows, swatches)


def _row_of(bounds: Sandwich) -> dict[str, float]:
    row = {"lower": np.nan, "upper": np.nan, "width": width(bounds)}
    for side, bound in (("lower", bounds.lower), ("upper", bounds.upper)):
        if bound is not None:
            row |= {side: bound.value, f"{side}_se": bound.se}
    return row


def parameters(comparison: Comparison, swatches: Mapping[str, str]) -> Iterator[str]:
    """The distances of every parameter, or of the farthest of each approximation."""
    table = comparison.table
    most = max(_FEWEST_ROWS, _ROWS // len(comparison.approximations))
    total = comparison.dataset.sizes["parameter"]
    if total > most:
        text = f"Of each approximation the {most} of {total:,} farthest from the reference; "
        yield markup.paragraph(text + "table.csv has all.", "soft")
    rows = _farthest(table, most)
    shown = [column for column in _PARAMETERS if column.key in table]
    cells = [
        [
            Cell(escape(str(parameter)), str(parameter)),
            Cell(swatches[str(name)] + escape(str(name)), str(name)),
            *(column.cell(row) for column in shown),
        ]
        for (name, parameter), row in rows.iterrows()
    ]
    header = ["parameter", "approximation", *(column.label for column in shown)]
    by = 2 + [column.key for column in shown].index("wasserstein")
    yield markup.table("Parameters, farthest first", header, cells, sorted_by=by, tall=True)


def _farthest(table: pd.DataFrame, most: int) -> pd.DataFrame:
    descending = table.sort_values("wasserstein", ascending=False, kind="stable")
    return descending.groupby(level="approximation", sort=False).head(most)


def rows_of(table: pd.DataFrame) -> dict[str, Mapping[str, Any]]:
    """The rows of a comparison's summary by name."""
    return {str(name): row for name, row in table.iterrows()}
