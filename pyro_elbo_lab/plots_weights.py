"""Whether importance weights can be trusted: k-hat against its threshold."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_elbo_lab import _style
from pyro_elbo_lab._figure import entitle
from pyro_elbo_lab.comparison import Comparison

_RANGE = (-0.25, 1.5)


def plot_k_hat(comparison: Comparison, cells: Mapping[str, np.ndarray] | None = None) -> Figure:
    """Draw k-hat of each approximation against the threshold below which weights are reliable.

    The shaded part of each row is where the weights can be trusted. Values outside the axis are
    drawn at its edge; the numbers stand on the right.

    Args:
        comparison: its k-hats are those of the joint log-weights.
        cells: k-hat of each cell of local latents, by approximation, drawn as ticks below it.

    Example:
        >>> from pyro_elbo_lab.comparison import compare
        >>> from arviz_base import from_dict
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=(1, 2000))
        >>> weights = {"log_weight": np.zeros_like(z)}
        >>> q = from_dict({"posterior": {"mu": z}, "sample_stats": weights})
        >>> p = from_dict({"posterior": {"mu": rng.normal(size=(2, 500))}})
        >>> plot_k_hat(compare({"exact": q}, p)).axes[0].get_xlabel()
        'k-hat (tail shape of the importance weights)'
    """
    cells = cells or {}
    styles = _style.styles(comparison.approximations)
    names = list(comparison.approximations)
    with plt.rc_context(_style.PRINT):
        row_height = 0.42 if cells else 0.3
        figure, axes = plt.subplots(
            figsize=(_style.WIDTH, 1.0 + row_height * len(names)), layout="constrained"
        )
        for i, name in enumerate(names):
            row = comparison.dataset.sel(approximation=name)
            k_hat, threshold = float(row["k_hat"]), float(row["k_hat_threshold"])
            _draw_threshold(axes, i, threshold)
            _draw_k_hat(axes, i, k_hat, styles[name])
            if name in cells:
                _draw_cells(axes, i, np.ravel(cells[name]), threshold, styles[name])
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(_RANGE)
        axes.set_xlabel("k-hat (tail shape of the importance weights)")
        axes.spines["left"].set_visible(False)
        entitle(figure, "Importance weights: reliable in the shaded part")
    return figure


def _draw_threshold(axes: Axes, y: int, threshold: float) -> None:
    if np.isnan(threshold):
        return
    axes.fill_betweenx((y - 0.42, y + 0.42), _RANGE[0], threshold, color="0.92", linewidth=0)
    axes.plot((threshold, threshold), (y - 0.42, y + 0.42), color="0.3", linewidth=1.2)


def _draw_k_hat(axes: Axes, y: int, k_hat: float, style: Mapping[str, Any]) -> None:
    if np.isnan(k_hat):
        axes.text(0.0, y, "no importance weights", va="center", fontsize=8, color="0.3")
        return
    x = np.clip(k_hat, *_RANGE)
    axes.plot(x, y, color=style["color"], marker=style["marker"], markersize=7, clip_on=False)
    _beside(axes, y, f"{k_hat:.2f}".replace("-", "\N{MINUS SIGN}"))


def _draw_cells(
    axes: Axes, y: int, k_hats: np.ndarray, threshold: float, style: Mapping[str, Any]
) -> None:
    x = np.clip(k_hats, *_RANGE)
    axes.vlines(x, y + 0.2, y + 0.36, color=style["color"], linewidth=0.5, rasterized=x.size > 1000)
    above = int((k_hats > threshold).sum())
    text = f"{above:,} of {k_hats.size:,} cells above"
    axes.text(_RANGE[1], y, text, ha="right", va="center", fontsize=8, color="0.3")


def _beside(axes: Axes, y: int, text: str) -> None:
    """Write at the right end of a row, where nothing is drawn."""
    place: Any = ("axes fraction", "data")
    axes.annotate(
        text, (1, y), xycoords=place, xytext=(14, 0), textcoords="offset points", va="center"
    )
