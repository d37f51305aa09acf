"""Figures of a Comparison: intervals, densities, training curves."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from arviz_stats.base import array_stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_elbo_lab import _style
from pyro_elbo_lab.comparison import Comparison

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_MEDIAN: dict[str, Any] = {"markersize": 4.5, "markerfacecolor": "white", "markeredgewidth": 1.0}


def plot_forest(comparison: Comparison, max_parameters: int = 12) -> Figure:
    """Draw medians, 50 % and 90 % intervals of the reference and of every approximation.

    Each parameter is shifted by the mean and divided by the sd of the reference, so that all share
    an axis. Beyond ``max_parameters``, only those with the largest Wasserstein distances are drawn.
    """
    parameters = _selection(comparison, max_parameters)
    styles = _style.styles(comparison.approximations)
    slots = np.linspace(-0.4, 0.4, len(styles) + 2)[1:-1]
    slot = dict(zip(styles, slots, strict=True))
    with plt.rc_context(_style.PRINT):
        height = 1.2 + len(parameters) * (0.09 * len(styles) + 0.16)
        figure, axes = plt.subplots(figsize=(_style.WIDTH, height), layout="constrained")
        for i, parameter in enumerate(parameters):
            draws = comparison.draws(parameter)
            centre, scale = draws["reference"].mean(), draws["reference"].std(ddof=1)
            for name, values in draws.items():
                quantiles = (np.quantile(values, _QUANTILES) - centre) / scale
                if name == "reference":
                    _shade_reference(axes, quantiles, i)
                _draw_interval(axes, quantiles, i + slot[name], styles[name])
        axes.set_yticks(range(len(parameters)), parameters)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(parameters) - 0.5, -0.5)
        axes.set_xlabel("(value \N{MINUS SIGN} reference mean) / reference sd")
        _decorate(figure, "Medians, 50 % and 90 % intervals", comparison, parameters)
        _style.legend(
            figure, {n: {**style, **_MEDIAN, "linestyle": "-"} for n, style in styles.items()}
        )
    return figure


def plot_densities(comparison: Comparison, max_parameters: int = 12) -> Figure:
    """Draw the marginal density of each parameter, approximations over the reference.

    The densities are kernel estimates in the parameters' own units; draws beyond the panel are not
    drawn. Beyond ``max_parameters``, only those with the largest Wasserstein distances are drawn.
    """
    parameters = _selection(comparison, max_parameters)
    styles = _style.styles(comparison.approximations)
    columns = min(3, len(parameters))
    rows = math.ceil(len(parameters) / columns)
    with plt.rc_context(_style.PRINT):
        figure, grid = plt.subplots(
            rows,
            columns,
            figsize=(_style.WIDTH, 1.0 + 1.45 * rows),
            layout="constrained",
            squeeze=False,
        )
        for axes, parameter in zip(grid.flat, parameters, strict=False):
            _draw_densities(axes, comparison.draws(parameter), styles)
            axes.set_title(parameter)
        for axes in grid.flat[len(parameters) :]:
            axes.set_axis_off()
        _decorate(figure, "Marginal posterior densities", comparison, parameters)
        _style.legend(figure, {name: {**style, "marker": ""} for name, style in styles.items()})
    return figure


def plot_loss(losses: np.ndarray, ax: Axes | None = None) -> Axes:
    """The losses of one fit over its steps, and their running median.

    The vertical axis leaves out the first tenth of the steps, where losses may be huge.

    Args:
        losses: in nats, shape (num_steps,).
        ax: where to draw, by default on new axes.

    Example:
        >>> plot_loss(np.linspace(5.0, 1.0, 100)).get_xlabel()
        'step'
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    steps = np.arange(1, len(losses) + 1)
    window = max(1, len(losses) // 50)
    medians = [np.median(part) for part in np.array_split(losses, max(1, len(losses) // window))]
    centres = [np.mean(part) for part in np.array_split(steps, len(medians))]
    ax.plot(steps, losses, linewidth=0.5, alpha=0.4, color="C0", label="every step")
    ax.plot(centres, medians, linewidth=1.8, color="C1", label=f"median of {window} steps")
    low, high = np.nanquantile(losses[len(losses) // 10 :], [0.005, 0.995])
    margin = 0.05 * (high - low) or 1.0
    ax.set(xlabel="step", ylabel="loss (nats)", ylim=(low - margin, high + margin))
    ax.legend(frameon=False)
    return ax


def plot_training(comparison: Comparison, losses: Mapping[str, np.ndarray]) -> Figure:
    """Draw the objective (minus the loss) of each approximation against the training step.

    Curves are running means over a twentieth of the steps. The vertical limits leave out the first
    tenth of each run, whose wild values would flatten the rest.

    Args:
        comparison: gives each approximation the style that it has in the other figures.
        losses: arrays of shape ``(num_steps,)`` by name of an approximation.
    """
    styles = _style.styles(comparison.approximations)
    with plt.rc_context(_style.PRINT):
        figure, axes = plt.subplots(figsize=(_style.WIDTH, 3.4), layout="constrained")
        settled = []
        for name, values in losses.items():
            window = max(1, len(values) // 20)
            smooth = np.convolve(-np.asarray(values, float), np.full(window, 1 / window), "valid")
            steps = np.arange(window, len(values) + 1)
            axes.plot(steps, smooth, label=name, linewidth=1.3, **_style.line(styles[name]))
            settled.append(smooth[len(smooth) // 10 :])
        low, high = np.nanquantile(np.concatenate(settled), (0.005, 1.0))
        margin = 0.05 * (high - low) or 1.0
        if np.isfinite(margin):
            axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel("training step")
        axes.set_ylabel("objective (nats)")
        figure.suptitle("Training: running mean of the maximised objective", fontsize=10)
        _style.legend(figure, {name: {**styles[name], "marker": ""} for name in losses})
    return figure


def _selection(comparison: Comparison, most: int) -> list[str]:
    """All parameters in their order, or the ``most`` farthest from the reference, worst first."""
    farthest = comparison.dataset["wasserstein"].max("approximation")
    names = farthest["parameter"].values
    if len(names) > most:
        names = names[np.argsort(-farthest.values, kind="stable")[:most]]
    return [str(name) for name in names]


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
    low, high = _window(draws)
    grid, height = _density(draws["reference"], low, high)
    axes.fill_between(grid, height, color="0.85", linewidth=0)
    for name, values in draws.items():
        if np.ptp(values) < 1e-3 * (high - low):  # a point, whose density is infinite
            axes.axvline(values.mean(), linewidth=1.3, **_style.line(styles[name]))
            continue
        axes.plot(*_density(values, low, high), linewidth=1.3, **_style.line(styles[name]))
    axes.set_xlim(low, high)
    axes.set_ylim(0, min(axes.get_ylim()[1], 4 * height.max()))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _window(draws: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Where nearly all draws lie, but at most 5 reference sds from the reference mean."""
    reference = draws["reference"]
    most = reference.mean() - 5 * reference.std(), reference.mean() + 5 * reference.std()
    quantiles = np.array([np.quantile(values, (0.005, 0.995)) for values in draws.values()])
    low, high = max(quantiles[:, 0].min(), most[0]), min(quantiles[:, 1].max(), most[1])
    starts_at_zero = 0 < low < 0.05 * high and all((values >= 0).all() for values in draws.values())
    return (0.0 if starts_at_zero else low), high


def _density(draws: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Return grid and density of the draws within the window, scaled to their share of all."""
    inside = draws[(low <= draws) & (draws <= high)]
    if inside.size < 10:
        return np.array([low, high]), np.zeros(2)
    grid, density, _ = array_stats.kde(inside)
    return grid, density * (inside.size / draws.size)


def _decorate(figure: Figure, what: str, comparison: Comparison, parameters: list[str]) -> None:
    total = comparison.dataset.sizes["parameter"]
    if len(parameters) < total:
        what += f": the {len(parameters)} of {total} parameters farthest from the reference"
    figure.suptitle(what, fontsize=10)
