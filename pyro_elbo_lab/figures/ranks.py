"""Ranks of a Calibration: how far from uniform, and how far from symmetric."""

from collections.abc import Callable
from typing import Any, Literal, Protocol, Self

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats.ecdf_utils import compute_ecdf, ecdf_pit
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_elbo_lab.figures import theme
from pyro_elbo_lab.figures.panels import entitle, panels, wrapped
from pyro_elbo_lab.statistics.ranks import LEVEL, p_in_words, pit

_SIMULATED = 5000
"""Uniform samples from which the width of a band is found."""

_GOOD, _BAD = theme.COLORS[:2]
_BAND = "0.88"
_MIRRORED: dict[str, Any] = {"color": "0.15", "linestyle": "-"}
_EXPECTED: dict[str, Any] = {"color": "0.5", "linestyle": (0, (4, 2))}


class Calibration(Protocol):
    """What these figures ask of a calibration, as `sbc` makes it: ranks, and what is found."""

    @property
    def ranks(self) -> xr.Dataset: ...
    @property
    def num_draws(self) -> int: ...
    @property
    def question(self) -> str: ...
    @property
    def scalars(self) -> dict[str, np.ndarray]: ...
    @property
    def table(self) -> pd.DataFrame: ...
    def asking(self, question: Literal["uniform", "symmetric"]) -> Self: ...


def plot_sbc(calibration: Calibration, max_parameters: int = 12) -> Figure:
    """Draw, for each parameter, the distribution of its ranks less the uniform one.

    The lines are empirical distribution functions of (rank + U) / (draws + 1), U uniform, less
    that of the uniform distribution. Uniform ranks stay inside the band everywhere with
    probability 99 % (Säilynoja, Bürkner & Vehtari 2022, "Graphical test for discrete uniformity
    and its applications in goodness-of-fit evaluation and multiple sample comparison"). A line
    first above and then below zero comes of an approximation that is too narrow, the reverse of
    one that is too wide; one that is above zero throughout of one that is too high.

    Args:
        calibration: from `sbc` or `vsbc`.
        max_parameters: of more than these, those with the smallest p-values are shown.

    Example:
        >>> from pyro_elbo_lab import Calibration
        >>> ranks = xr.Dataset({"z": ("simulation", np.arange(100))})
        >>> figure = plot_sbc(Calibration(ranks, 99, "uniform", {}, ()))
        >>> figure.get_supylabel()
        'ECDF difference'
    """
    size = calibration.ranks.sizes["simulation"]
    points, _, low, high = ecdf_pit(np.linspace(0, 1, size), 1 - LEVEL, _SIMULATED)

    def draw(axes: Axes, u: np.ndarray, color: str) -> None:
        axes.fill_between(points, low - points, high - points, color=_BAND, linewidth=0, zorder=0)
        axes.axhline(0, color="0.5", linewidth=0.7)
        axes.plot(points, compute_ecdf(u, points) - points, color=color, linewidth=1.3)

    title = f"Ranks less uniform ones, with 99 % bands, in {size} simulations"
    labels = ("rank / draws", "ECDF difference")
    return _figure(calibration.asking("uniform"), max_parameters, title, labels, draw)


def plot_vsbc(calibration: Calibration, max_parameters: int = 12) -> Figure:
    """Draw, for each parameter, a histogram of the probabilities q(z < true z).

    It is symmetric about 1/2 where the approximation is right on average (Yao, Vehtari, Simpson &
    Gelman 2018, "Yes, but did it work? Evaluating variational inference"); higher at the left
    where the approximation is too high.

    Args:
        calibration: from `sbc` or `vsbc`.
        max_parameters: of more than these, those with the smallest p-values are shown.

    Example:
        >>> from pyro_elbo_lab import Calibration
        >>> ranks = xr.Dataset({"z": ("simulation", np.arange(100))})
        >>> figure = plot_vsbc(Calibration(ranks, 99, "symmetric", {}, ()))
        >>> figure.get_supylabel()
        'simulations'
    """
    size = calibration.ranks.sizes["simulation"]
    num_bins = int(np.clip(2 * round(size / 25), 4, 20))
    edges = np.linspace(0, 1, num_bins + 1)

    def draw(axes: Axes, u: np.ndarray, color: str) -> None:
        counts, _ = np.histogram(u, edges)
        axes.stairs(counts, edges, fill=True, color=color, alpha=0.55)
        axes.stairs(counts[::-1], edges, **_MIRRORED, linewidth=1.0)
        axes.axhline(size / num_bins, **_EXPECTED, linewidth=0.7)

    title = f"Posterior probability below the true value, in {size} simulations"
    labels = ("q(z < true z)", "simulations")
    figure = _figure(calibration.asking("symmetric"), max_parameters, title, labels, draw)
    with theme.settings():
        theme.legend(figure, {"mirror image": _MIRRORED, "expected if calibrated": _EXPECTED})
    return figure


def _figure(
    calibration: Calibration,
    most: int,
    title: str,
    labels: tuple[str, str],
    draw: Callable[[Axes, np.ndarray, str], None],
) -> Figure:
    table, p = calibration.table, f"p_{calibration.question}"
    worst = table.nsmallest(most, p) if len(table) > most else table
    ranks = calibration.scalars
    with theme.settings():
        height = 1.75 if len(worst) > 3 else 2.2
        figure, grid = panels(len(worst), columns=3, height=height, share=True)
        for axes, row in zip(grid, worst.itertuples(), strict=True):
            good = row.finding == calibration.question
            draw(axes, pit(ranks[row.parameter], calibration.num_draws), _GOOD if good else _BAD)
            p_value = p_in_words(getattr(row, p))
            finding = p_value if good else f"{row.finding} ({p_value})"
            lines = wrapped(row.parameter, len(worst)) + wrapped(finding, len(worst))
            axes.set_title("\n".join(lines))
        grid[0].set(xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
        for axes in grid[-3:]:
            axes.set_xlabel(labels[0])
        figure.supylabel(labels[1], fontsize=9)
        if len(worst) < len(table):
            title += f": the {len(worst)} of {len(table):,} parameters with the smallest p"
        entitle(figure, title)
    return figure
