"""Bounds of the evidence from both sides, one row an approximation."""

from collections.abc import Mapping
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_elbo_lab.figures import theme
from pyro_elbo_lab.figures.panels import Comparison, entitle

_ERRORS = 2
"""Standard errors drawn on either side of a bound."""


class Bound(Protocol):
    """A bound of log p(x) in nats, and its standard error."""

    @property
    def value(self) -> float: ...
    @property
    def se(self) -> float: ...


class Sandwich(Protocol):
    """The best believable bounds of log p(x) from below and above, None where there is none.

    `table` has all bounds, and `plot` draws them.
    """

    @property
    def lower(self) -> Bound | None: ...
    @property
    def upper(self) -> Bound | None: ...
    @property
    def table(self) -> pd.DataFrame: ...
    def plot(self) -> Figure: ...


def plot_evidence_bounds(comparison: Comparison, evidence: Mapping[str, Sandwich]) -> Figure:
    """Draw the best lower and upper bound of log p(x) that each approximation gives.

    The true value lies between the two ends of a bar, up to the standard errors: the thin lines
    are two of them. The shaded band is what all approximations together leave open.

    Args:
        comparison: gives each approximation the style that it has in the other figures.
        evidence: bounds by name of an approximation, such as `EvidenceBounds`.

    Example:
        >>> from types import SimpleNamespace as Object
        >>> from pyro_elbo_lab import compare
        >>> from arviz_base import from_dict
        >>> rng = np.random.default_rng(0)
        >>> q, p = (from_dict({"posterior": {"mu": rng.normal(size=(2, 500))}}) for _ in range(2))
        >>> low, high = Object(value=-3.2, se=0.1), Object(value=-2.9, se=0.1)
        >>> bounds = {"guide": Object(lower=low, upper=high)}
        >>> plot_evidence_bounds(compare({"guide": q}, p), bounds).axes[0].get_xlabel()
        'log evidence (nats)'
    """
    styles = theme.styles(comparison.approximations)
    names = [name for name in comparison.approximations if name in evidence]
    with theme.settings():
        figure, axes = plt.subplots(
            figsize=(theme.WIDTH, 1.0 + 0.3 * len(names)), layout="constrained"
        )
        low, high = common_bounds(evidence)
        if low is not None and high is not None:
            axes.axvspan(low.value, high.value, color="0.9", linewidth=0)
        for i, name in enumerate(names):
            _draw_sandwich(axes, i, evidence[name], styles[name])
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.set_xlabel("log evidence (nats)")
        axes.spines["left"].set_visible(False)
        entitle(figure, "Log evidence: bounds from below and from above")
    return figure


def common_bounds(evidence: Mapping[str, Sandwich]) -> tuple[Bound | None, Bound | None]:
    """The highest lower and the lowest upper bound: log p(x) is the same for all."""
    lower = [found.lower for found in evidence.values() if found.lower is not None]
    upper = [found.upper for found in evidence.values() if found.upper is not None]
    return (
        max(lower, key=lambda bound: bound.value, default=None),
        min(upper, key=lambda bound: bound.value, default=None),
    )


def width(bounds: Sandwich) -> float:
    """The width of the interval between both bounds, in nats; NaN where one is missing."""
    if bounds.lower is None or bounds.upper is None:
        return float("nan")
    return bounds.upper.value - bounds.lower.value


def _draw_sandwich(axes: Axes, y: int, bounds: Sandwich, style: Mapping[str, Any]) -> None:
    color = style["color"]
    if bounds.lower is not None and bounds.upper is not None:
        ends = (bounds.lower.value, bounds.upper.value)
        axes.plot(ends, (y, y), color=color, linewidth=3, alpha=0.45, solid_capstyle="butt")
    for bound, marker in ((bounds.lower, ">"), (bounds.upper, "<")):
        if bound is None:
            continue
        error = 0.0 if np.isnan(bound.se) else _ERRORS * bound.se
        axes.errorbar(
            bound.value, y, xerr=error, color=color, marker=marker, markersize=6, elinewidth=1.0
        )
