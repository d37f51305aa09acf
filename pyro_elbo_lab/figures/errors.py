"""All parameters at a glance: the error of each mean against the ratio of each sd."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pyro_elbo_lab.figures import theme
from pyro_elbo_lab.figures.panels import Comparison, entitle, mark, panels, shortened, wrapped
from pyro_elbo_lab.statistics.tolerances import TOLERANCE

_ERRORS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4)
_RATIOS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0, 1.1, 1.4, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
_LINEAR = 0.2
"""Up to here, in reference sds or in log sd ratio, the axes are linear; beyond, logarithmic."""

_MANY = 1000


def plot_errors(comparison: Comparison) -> Figure:
    """Draw every parameter as one point: error of the mean against the sd ratio.

    One panel for each approximation, all on the same axes, which are linear around agreement and
    logarithmic far from it. The shaded box is what the verdict tolerates; points outside are
    filled, and the one with the largest Wasserstein distance has a black rim and is named. Ratios
    beyond 1/50 and 50 are drawn at the edge.

    Example:
        >>> from pyro_elbo_lab import compare
        >>> from arviz_base import from_dict
        >>> rng = np.random.default_rng(0)
        >>> q, p = (from_dict({"posterior": {"mu": rng.normal(size=(2, 500))}}) for _ in range(2))
        >>> print(plot_errors(compare({"guide": q}, p)).axes[0].get_title())
        guide
        1 of 1 within tolerance
        worst: mu
    """
    dataset = comparison.dataset
    styles = theme.styles(comparison.approximations)
    count = len(comparison.approximations)
    with theme.settings():
        figure, grid = panels(count, columns=3, height=2.5, share=True)
        _scale(grid[0], dataset)
        for axes, name in zip(grid, comparison.approximations, strict=True):
            row = dataset.sel(approximation=name).dropna("parameter", subset=["mean_error"])
            _draw_panel(axes, row, styles[name])
            axes.set_title("\n".join([*wrapped(name, count), *_findings(row)]))
        entitle(figure, "Every parameter: error of its mean against its sd ratio")
        figure.supxlabel("error of the mean (reference sd)", fontsize=9)
        figure.supylabel(
            "too narrow \N{LEFTWARDS ARROW} sd ratio \N{RIGHTWARDS ARROW} too wide", fontsize=9
        )
    return figure


def _draw_panel(axes: Axes, row: xr.Dataset, style: Mapping[str, Any]) -> None:
    _draw_tolerance(axes)
    inside, worst = _tolerated(row), _worst(row)
    error = row["mean_error"].values
    ratio = np.clip(row["sd_ratio"].values, _RATIOS[0], _RATIOS[-1])
    color = style["color"]
    common: dict[str, Any] = {
        "s": 26 if error.size <= 100 else 12 if error.size <= _MANY else 4,
        "marker": style["marker"],
        "rasterized": error.size > _MANY,
        "clip_on": False,
    }
    axes.scatter(
        error[inside], ratio[inside], facecolors="none", edgecolors=color, linewidths=0.7, **common
    )
    axes.scatter(
        error[~inside],
        ratio[~inside],
        facecolors=color,
        edgecolors="white",
        linewidths=0.4,
        **common,
    )
    face = "none" if inside[worst] else color
    rim: dict[str, Any] = {"edgecolors": "black", "linewidths": 1.0, "zorder": 3}
    axes.scatter(error[worst], ratio[worst], facecolors=face, **rim, **{**common, "s": 30})


def _draw_tolerance(axes: Axes) -> None:
    corner, size = (-TOLERANCE, 1 - TOLERANCE), 2 * TOLERANCE
    axes.add_patch(Rectangle(corner, size, size, facecolor="0.87", linewidth=0, zorder=0))
    axes.axhline(1, color="0.75", linewidth=0.6, zorder=0.5)
    axes.axvline(0, color="0.75", linewidth=0.6, zorder=0.5)


def _tolerated(row: xr.Dataset) -> np.ndarray:
    within = (abs(row["mean_error"]) <= TOLERANCE) & (abs(row["sd_ratio"] - 1) <= TOLERANCE)
    return within.values


def _worst(row: xr.Dataset) -> int:
    return int(np.argmax(row["wasserstein"].values))


def _findings(row: xr.Dataset) -> list[str]:
    inside = _tolerated(row)
    worst = shortened(str(row["parameter"].values[_worst(row)]))
    return [f"{inside.sum():,} of {inside.size:,} within tolerance", f"worst: {worst}"]


def _scale(axes: Axes, dataset: xr.Dataset) -> None:
    """Scales, limits and ticks for all parameters, the box of tolerance well inside."""
    farthest = max(3 * TOLERANCE, 1.15 * float(abs(dataset["mean_error"]).max()))
    axes.set_xscale("asinh", linear_width=_LINEAR)
    axes.set_xlim(-farthest, farthest)
    ticks = [0.0, *(sign * error for error in _ERRORS for sign in (1, -1))]
    mark(axes.xaxis, [x for x in ticks if abs(x) <= farthest], lambda x: np.arcsinh(x / _LINEAR))
    extent = max(
        1.15 * float(abs(np.log(dataset["sd_ratio"].clip(_RATIOS[0], _RATIOS[-1]))).max()), 0.3
    )
    axes.set_yscale("function", functions=(_spread, _unspread))
    axes.set_ylim(np.exp(-extent), np.exp(extent))
    mark(axes.yaxis, [r for r in _RATIOS if abs(np.log(r)) <= extent], _spread)


def _spread(ratio: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # matplotlib also asks for zero
        return np.arcsinh(np.log(np.maximum(ratio, 1e-9)) / _LINEAR)


def _unspread(place: np.ndarray) -> np.ndarray:
    return np.exp(_LINEAR * np.sinh(place))
