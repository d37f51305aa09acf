"""Whether importance weights can be trusted: k-hat against its threshold."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_elbo_lab.figures import theme
from pyro_elbo_lab.figures.panels import Comparison, entitle
from pyro_elbo_lab.statistics.importance import FEWEST_DRAWS, k_hat

_RANGE = (-0.25, 1.5)


_MOST_CELLS = 2000
"""A second and a half of tail fits; where there are more, as many are taken at even distances."""


def plot_k_hat(comparison: Comparison) -> Figure:
    """Draw k-hat of each approximation against the threshold below which weights are reliable.

    The shaded part of each row is where the weights can be trusted. Values outside the axis are
    drawn at its edge; the numbers stand on the right. Ticks are the k-hats of the cells of local
    latents, of at most 2000 of them.

    Args:
        comparison: its k-hats are those of the joint log-weights; an approximation has cells where
            its tree has `cell_log_weight`, as `from_guide` returns it.

    Example:
        >>> from pyro_elbo_lab import compare
        >>> from arviz_base import from_dict
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=(1, 2000))
        >>> weights = {"log_weight": np.zeros_like(z)}
        >>> q = from_dict({"posterior": {"mu": z}, "sample_stats": weights})
        >>> p = from_dict({"posterior": {"mu": rng.normal(size=(2, 500))}})
        >>> plot_k_hat(compare({"exact": q}, p)).axes[0].get_xlabel()
        'k-hat (tail shape of the importance weights)'
    """
    trees = comparison.approximations
    cells = {name: found for name, tree in trees.items() if (found := _cells(tree)) is not None}
    styles = theme.styles(comparison.approximations)
    names = list(comparison.approximations)
    with theme.settings():
        row_height = 0.42 if cells else 0.3
        figure, axes = plt.subplots(
            figsize=(theme.WIDTH, 1.0 + row_height * len(names)), layout="constrained"
        )
        for i, name in enumerate(names):
            row = comparison.dataset.sel(approximation=name)
            threshold = float(row["k_hat_threshold"])
            _draw_threshold(axes, i, threshold)
            _draw_k_hat(axes, i, float(row["k_hat"]), styles[name])
            if name in cells:
                _draw_cells(axes, i, cells[name], threshold, styles[name])
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(_RANGE)
        axes.set_xlabel("k-hat (tail shape of the importance weights)")
        axes.spines["left"].set_visible(False)
        entitle(figure, "Importance weights: reliable in the shaded part")
    return figure


def _cells(tree: xr.DataTree) -> np.ndarray | None:
    """k-hats of the cells, (cell,), None where there are none."""
    if "sample_stats" not in tree.children:
        return None
    stats = tree["sample_stats"].to_dataset()
    arrays = [stats[name] for name in stats if str(name).startswith("cell_log_weight")]
    if not arrays or arrays[0].sizes["chain"] * arrays[0].sizes["draw"] < FEWEST_DRAWS:
        return None
    log_w = [array.transpose("chain", "draw", ...).values for array in arrays]
    joined = np.concatenate([x.reshape(*x.shape[:2], -1) for x in log_w], -1)
    return k_hat(joined[..., :: math.ceil(joined.shape[-1] / _MOST_CELLS)])


def _draw_threshold(axes: Axes, y: int, threshold: float) -> None:
    if np.isnan(threshold):
        return
    axes.fill_betweenx((y - 0.42, y + 0.42), _RANGE[0], threshold, color="0.92", linewidth=0)
    axes.plot((threshold, threshold), (y - 0.42, y + 0.42), color="0.3", linewidth=1.2)


def _draw_k_hat(axes: Axes, y: int, value: float, style: Mapping[str, Any]) -> None:
    if np.isnan(value):
        axes.text(0.0, y, "no importance weights", va="center", fontsize=8, color="0.3")
        return
    x = np.clip(value, *_RANGE)
    axes.plot(x, y, color=style["color"], marker=style["marker"], markersize=7, clip_on=False)
    _beside(axes, y, f"{value:.2f}".replace("-", "\N{MINUS SIGN}"))


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
