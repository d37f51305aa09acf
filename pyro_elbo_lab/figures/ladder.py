"""The ladder of bounds of log p(x), from below and from above."""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_elbo_lab.figures import theme
from pyro_elbo_lab.figures.evidence import Sandwich

_LADDERS = {
    "importance-weighted": ("ELBO", "IW"),
    "in cells": ("IW in cells",),
    "in cells, 10 shared": ("10 x IW in cells",),
    "reverse importance-weighted": ("EUBO", "reverse IW"),
}
_COLUMNS = ("jackknife", "PSIS", "CUBO_2")


def plot_evidence(bounds: Sandwich) -> Figure:
    """Draw all bounds with two standard errors, and a close-up of the believable interval.

    Bounds that are not believed are hollow. The interval between the best lower and the best upper
    bound is shaded.

    Args:
        bounds: from `evidence`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_elbo_lab import evidence
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> len(plot_evidence(evidence(model, model, num_samples=1000)).axes)
        2
    """
    with theme.settings():
        figure, (whole, close) = plt.subplots(
            1, 2, figsize=(theme.WIDTH, 3.5), layout="constrained"
        )
        shown = {}
        for axes in (whole, close):
            shown = _draw(axes, bounds.table)
            _shade(axes, bounds)
        whole.set_title("all bounds")
        close.set_title("close-up")
        close.set_ylim(*_window(bounds))
        whole.set_ylabel("nats")
        figure.suptitle("Bounds of the evidence log p(x), with two standard errors", fontsize=10)
        theme.legend(figure, shown)
    return figure


def _draw(axes: Axes, table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    styles = theme.styles(_LADDERS)
    shown = {}
    last = 0.0
    for ladder, names in _LADDERS.items():
        rows = table[table["name"].isin(names) & np.isfinite(table["value"])]
        if len(rows):
            rows = rows.sort_values("num_draws")
            x = np.log10(rows["num_draws"].to_numpy())
            last = max(last, float(x.max()))
            style = styles[ladder]
            axes.plot(x, rows["value"], linewidth=1.0, **theme.line(style))
            _points(axes, x, rows, style)
            shown[ladder] = style
    ticks = {float(i): f"{10**i}" for i in range(int(last) + 1)}
    single = {"color": "0.25", "marker": "D", "linestyle": "none"}
    columns = [n for n in _COLUMNS if np.isfinite(table.loc[table["name"] == n, "value"]).any()]
    for i, name in enumerate(columns, 1):
        rows = table[table["name"] == name].tail(1)
        _points(axes, np.array([last + 0.7 * i]), rows, single)
        ticks[last + 0.7 * i] = name
    axes.set_xticks(list(ticks), list(ticks.values()))
    for label, place in zip(axes.get_xticklabels(), ticks, strict=True):
        if place > last:
            label.set(rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlabel("draws K of a bound")
    axes.margins(x=0.08)
    return shown


def _points(axes: Axes, x: np.ndarray, rows: pd.DataFrame, style: dict[str, Any]) -> None:
    for place, row in zip(x, rows.itertuples(), strict=True):
        axes.errorbar(
            place,
            row.value,
            yerr=0.0 if math.isnan(row.se) else 2 * row.se,
            color=style["color"],
            marker=style["marker"],
            markersize=4.5,
            markerfacecolor=style["color"] if row.believable else "white",
            capsize=2,
            elinewidth=0.9,
        )


def _shade(axes: Axes, bounds: Sandwich) -> None:
    if bounds.lower is not None and bounds.upper is not None:
        low, high = sorted((bounds.lower.value, bounds.upper.value))
        axes.axhspan(low, high, color="0.88", linewidth=0, zorder=0)


def _window(bounds: Sandwich) -> tuple[float, float]:
    """Both bounds, their errors, and room around them."""
    ends = [bound for bound in (bounds.lower, bounds.upper) if bound is not None]
    if not ends:
        return -1.0, 1.0
    low = min(bound.value - 4 * bound.se for bound in ends)
    high = max(bound.value + 4 * bound.se for bound in ends)
    room = max(0.3 * (high - low), 1e-3 * max(1.0, abs(high)))
    return low - room, high + room
