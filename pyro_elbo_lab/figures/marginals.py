"""Marginal distributions beside the reference: intervals and densities."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from arviz_stats.base import array_stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_elbo_lab.figures import theme
from pyro_elbo_lab.figures.panels import (
    Comparison,
    discrete_values,
    entitle,
    farthest,
    mark,
    panels,
    selection,
    window,
)

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_FAR, _LINEAR = 6.0, 2.0
_MEDIAN: dict[str, Any] = {"markersize": 4.5, "markerfacecolor": "white", "markeredgewidth": 1.0}


def plot_forest(comparison: Comparison, max_parameters: int = 12) -> Figure:
    """Draw medians, 50 % and 90 % intervals of the reference and of every approximation.

    Each parameter is shifted by the mean and divided by the sd of the reference, so that all share
    an axis, which is linear in the middle and logarithmic where some interval lies far outside.
    Beyond `max_parameters`, only those with the largest Wasserstein distances are drawn.

    Example:
        >>> from pyro_elbo_lab import compare
        >>> from arviz_base import from_dict
        >>> rng = np.random.default_rng(0)
        >>> q, p = (from_dict({"posterior": {"mu": rng.normal(size=(2, 500))}}) for _ in range(2))
        >>> plot_forest(compare({"q": q}, p)).get_suptitle()
        'Medians, 50 % and 90 % intervals'
    """
    parameters = farthest(comparison, max_parameters)
    styles = theme.styles(comparison.approximations)
    slots = np.linspace(-0.4, 0.4, len(styles) + 2)[1:-1]
    slot = dict(zip(styles, slots, strict=True))
    with theme.settings():
        height = 1.2 + len(parameters) * row_height(len(styles))
        figure, axes = plt.subplots(figsize=(theme.WIDTH, height), layout="constrained")
        for i, parameter in enumerate(parameters):
            draws = comparison.draws(parameter)
            center, scale = draws["reference"].mean(), draws["reference"].std(ddof=1)
            for name, values in draws.items():
                quantiles = (np.quantile(values, _QUANTILES) - center) / scale
                if name == "reference":
                    _shade_reference(axes, quantiles, i)
                _draw_interval(axes, quantiles, i + slot[name], styles[name])
        axes.set_yticks(range(len(parameters)), parameters)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(parameters) - 0.5, -0.5)
        axes.set_xlabel("(value \N{MINUS SIGN} reference mean) / reference sd")
        _compress(axes)
        total = comparison.dataset.sizes["parameter"]
        entitle(figure, selection("Medians, 50 % and 90 % intervals", len(parameters), total))
        theme.legend(
            figure, {n: {**style, **_MEDIAN, "linestyle": "-"} for n, style in styles.items()}
        )
    return figure


def _compress(axes: Axes) -> None:
    """Keep the reference's intervals wide where some approximation is many sds away."""
    low, high = axes.get_xlim()
    farthest = max(-low, high)
    if farthest <= _FAR:
        return
    axes.set_xscale("asinh", linear_width=_LINEAR)
    axes.set_xlim(low, high)
    powers = [base * 10.0**i for i in range(int(np.log10(farthest)) + 1) for base in (1, 2, 5)]
    ticks = [0.0, *(sign * power for power in powers for sign in (-1, 1))]
    inside = [tick for tick in ticks if low <= tick <= high]
    mark(axes.xaxis, inside, lambda x: np.arcsinh(x / _LINEAR))


def row_height(num_intervals: int) -> float:
    """The height of one parameter in the forest, in inches."""
    return 0.09 * num_intervals + 0.16


def plot_densities(comparison: Comparison, max_parameters: int = 12) -> Figure:
    """Draw the marginal density of each parameter, approximations over the reference.

    The densities are kernel estimates in the parameters' own units; of a discrete parameter these
    are shares, and the reference's are bars. Draws beyond the panel are not
    drawn; an arrow at its edge stands for an approximation whose median is there. Beyond
    `max_parameters`, only those with the largest Wasserstein distances are drawn.

    Example:
        >>> from pyro_elbo_lab import compare
        >>> from arviz_base import from_dict
        >>> rng = np.random.default_rng(0)
        >>> q, p = (from_dict({"posterior": {"mu": rng.normal(size=(2, 500))}}) for _ in range(2))
        >>> [axes.get_title() for axes in plot_densities(compare({"q": q}, p)).axes]
        ['mu']
    """
    parameters = farthest(comparison, max_parameters)
    styles = theme.styles(comparison.approximations)
    with theme.settings():
        figure, grid = panels(len(parameters), columns=3, height=1.45)
        for axes, parameter in zip(grid, parameters, strict=True):
            draws = comparison.draws(parameter)
            values = discrete_values(draws.values())
            if values is None:
                _draw_densities(axes, draws, styles)
            else:
                _draw_shares(axes, draws, values, styles)
            axes.set_title(parameter)
        total = comparison.dataset.sizes["parameter"]
        entitle(figure, selection("Marginal posterior densities", len(parameters), total))
        theme.legend(figure, {name: {**style, "marker": ""} for name, style in styles.items()})
    return figure


def _shade_reference(axes: Axes, quantiles: np.ndarray, y: float) -> None:
    """Let the eye follow the reference's intervals down to the approximations below."""
    low, quarter, median, three_quarters, high = quantiles
    for left, right, grey in ((low, high, "0.95"), (quarter, three_quarters, "0.88")):
        axes.fill_betweenx((y - 0.44, y + 0.44), left, right, color=grey, linewidth=0, zorder=0)
    axes.plot((median, median), (y - 0.44, y + 0.44), color="0.6", linewidth=0.7, zorder=0.5)


def _draw_interval(axes: Axes, quantiles: np.ndarray, y: float, style: Mapping[str, Any]) -> None:
    low, quarter, median, three_quarters, high = quantiles
    color = style["color"]
    axes.plot((low, high), (y, y), color=color, linewidth=0.9, solid_capstyle="butt")
    axes.plot((quarter, three_quarters), (y, y), color=color, linewidth=2.6, solid_capstyle="butt")
    axes.plot(median, y, color=color, marker=style["marker"], **_MEDIAN)


def _draw_densities(
    axes: Axes, draws: Mapping[str, np.ndarray], styles: Mapping[str, Mapping[str, Any]]
) -> None:
    low, high = window(draws)
    grid, height = _density(draws["reference"], low, high)
    axes.fill_between(grid, height, color="0.85", linewidth=0)
    for name, values in draws.items():
        if np.ptp(values) < 1e-3 * (high - low):  # a point, whose density is infinite
            axes.axvline(values.mean(), linewidth=1.3, **theme.line(styles[name]))
            continue
        _point_beyond(axes, float(np.median(values)), low, high, styles[name]["color"])
        axes.plot(*_density(values, low, high), linewidth=1.3, **theme.line(styles[name]))
    axes.set_xlim(low, high)
    axes.set_ylim(0, min(axes.get_ylim()[1], 4 * height.max()))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _draw_shares(
    axes: Axes,
    draws: Mapping[str, np.ndarray],
    values: np.ndarray,
    styles: Mapping[str, Mapping[str, Any]],
) -> None:
    width = np.diff(values).min()
    for i, (name, own) in enumerate(draws.items()):
        shares = [np.mean(own == value) for value in values]
        if name == "reference":
            axes.bar(values, shares, 0.9 * width, color="0.85")
        at = values + width * (i / len(draws) - 0.5 + 0.5 / len(draws)) * 0.8
        axes.vlines(at, 0, shares, linewidth=1.8, color=styles[name]["color"])
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _point_beyond(axes: Axes, median: float, low: float, high: float, color: str) -> None:
    if low <= median <= high:
        return
    at, marker = (low, "<") if median < low else (high, ">")
    axes.plot(at, 0.12, marker, color=color, transform=axes.get_xaxis_transform(), clip_on=False)


def _density(draws: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Grid and density of the draws within the window, scaled to their share of all."""
    inside = draws[(low <= draws) & (draws <= high)]
    if inside.size < 10:
        return np.array([low, high]), np.zeros(2)
    grid, density, _ = array_stats.kde(inside, grid_len=256)
    return grid, density * (inside.size / draws.size)
