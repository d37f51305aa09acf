"""Two parameters at a time: both clouds, where their correlation is most wrong."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from arviz_stats.base import array_stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from pyro_elbo_lab.figures import theme
from pyro_elbo_lab.figures.panels import (
    Comparison,
    discrete_values,
    entitle,
    farthest,
    panels,
    shortened,
    window,
    wrapped,
)

_CANDIDATES = 100
_SHARES = (0.9, 0.5)
_POINTS = 250
_FEWEST = 50


@dataclass(frozen=True)
class _Pair:
    """Two parameters, their draws in an approximation and the reference, and their correlations."""

    parameters: tuple[str, str]
    draws: np.ndarray  # (2, S)
    reference: np.ndarray  # (2, R)
    correlation: float
    expected: float


def plot_pairs(comparison: Comparison) -> Figure:
    """Draw, for each approximation, the pair of parameters whose correlation is most wrong.

    The reference is the grey cloud with its regions of 50 % and 90 % probability, the
    approximation the colored cloud with the outlines of its own. The pair is sought among the 100
    parameters with the largest Wasserstein distances; for a point estimate it is the first two.
    Two discrete parameters have clouds only, spread out at each pair of values, the reference's at
    the left.

    Raises:
        ValueError: there is only one parameter.

    Example:
        >>> from pyro_elbo_lab import compare
        >>> from arviz_base import from_dict
        >>> rng = np.random.default_rng(0)
        >>> q = from_dict({"posterior": {"z": rng.normal(size=(1, 2000, 2))}})
        >>> p = from_dict({"posterior": {"z": rng.normal(size=(1, 2000, 2)) @ [[1, 1], [0, 1]]}})
        >>> print(plot_pairs(compare({"mean-field": q}, p)).axes[0].get_title())
        mean-field
        r = ...0.0..., reference 0.7...
    """
    total = comparison.dataset.sizes["parameter"]
    if total < 2:
        raise ValueError("a pair plot needs two parameters; the comparison has only one")
    names = farthest(comparison, _CANDIDATES)
    candidates = [comparison.draws(name) for name in names]
    styles = theme.styles(comparison.approximations)
    count = len(comparison.approximations)
    continuous = False
    with theme.settings():
        figure, grid = panels(count, columns=3, height=2.5)
        for axes, name in zip(grid, comparison.approximations, strict=True):
            pair = _worst_pair(name, names, candidates)
            if pair is None:
                axes.set_axis_off()
                continue
            _draw_pair(axes, pair, styles[name])
            continuous |= _gaps(pair) is None
            axes.set_title("\n".join([*wrapped(name, count), _correlations(pair)]))
        what = "The pair of parameters whose correlation r is most wrong"
        if total > _CANDIDATES:
            what += f", among the {_CANDIDATES} of {total:,} farthest from the reference"
        entitle(figure, "\n".join(textwrap.wrap(what, 90)))
        if continuous:
            _explain(figure)
    return figure


def _worst_pair(
    name: str, parameters: list[str], candidates: list[dict[str, np.ndarray]]
) -> _Pair | None:
    """The pair with the largest error of the correlation; None without two common parameters."""
    common = [i for i, draws in enumerate(candidates) if name in draws]
    if len(common) < 2:
        return None
    draws = np.stack([candidates[i][name] for i in common])
    reference = np.stack([candidates[i]["reference"] for i in common])
    found, expected = _correlation(draws), _correlation(reference)
    error = np.triu(np.nan_to_num(np.abs(found - expected)), 1)
    i, j = np.unravel_index(error.argmax(), error.shape) if error.any() else (0, 1)
    return _Pair(
        parameters=(parameters[common[i]], parameters[common[j]]),
        draws=draws[[i, j]],
        reference=reference[[i, j]],
        correlation=float(found[i, j]),
        expected=float(expected[i, j]),
    )


def _correlation(draws: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.corrcoef(draws.astype(float))


def _draw_pair(axes: Axes, pair: _Pair, style: Mapping[str, Any]) -> None:
    gaps = _gaps(pair)
    if gaps is None:
        _draw_continuous(axes, pair, style)
    else:
        _draw_discrete(axes, pair, gaps, style)
    axes.set_xlabel(shortened(pair.parameters[0]))
    axes.set_ylabel(shortened(pair.parameters[1]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))


def _gaps(pair: _Pair) -> np.ndarray | None:
    """Least distances between values of each parameter, (2, 1); None unless both are discrete."""
    values = [discrete_values(both) for both in zip(pair.draws, pair.reference, strict=True)]
    gaps = [[np.diff(own).min()] for own in values if own is not None]
    return np.array(gaps) if len(gaps) == 2 else None


def _draw_discrete(axes: Axes, pair: _Pair, gaps: np.ndarray, style: Mapping[str, Any]) -> None:
    rng = np.random.default_rng(0)
    sides = (pair.reference, -0.18, "0.35"), (pair.draws, 0.18, style["color"])
    for draws, side, color in sides:
        few = _thinned(draws)
        apart = rng.uniform(-0.15, 0.15, few.shape)
        apart[0] += side
        x, y = few + gaps * apart
        axes.scatter(x, y, s=3, linewidths=0, rasterized=True, color=color)


def _draw_continuous(axes: Axes, pair: _Pair, style: Mapping[str, Any]) -> None:
    limits = [
        window({"reference": r, "approximation": q})
        for q, r in zip(pair.draws, pair.reference, strict=True)
    ]
    if _fill_the_plane(pair.reference):
        x, y, density, levels = _regions(pair.reference)
        axes.contourf(x, y, density, levels=[*levels, density.max()], colors=["0.92", "0.82"])
    cloud: dict[str, Any] = {"s": 3, "linewidths": 0, "rasterized": True}
    axes.scatter(*_thinned(pair.reference), color="0.35", **cloud)
    axes.scatter(*_thinned(pair.draws), color=style["color"], **cloud)
    inside = pair.draws[:, _within(pair.draws, limits)]
    if np.ptp(pair.draws, axis=1).min() == 0:
        axes.plot(*pair.draws[:, 0], color=style["color"], marker=style["marker"], markersize=7)
    elif inside.shape[1] >= _FEWEST and _fill_the_plane(inside):
        x, y, density, levels = _regions(inside)
        line: dict[str, Any] = {
            "colors": style["color"],
            "linestyles": [style["linestyle"]],
            "linewidths": 1.3,
        }
        axes.contour(x, y, density, levels=levels, **line)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def _fill_the_plane(draws: np.ndarray) -> bool:
    """Whether draws (2, S) are not all on one line, where no density in the plane exists."""
    return bool(abs(_correlation(draws)[0, 1]) < 1 - 1e-9)


def _regions(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Grid, density and the levels that enclose 90 % and 50 % of the draws `(2, S)`."""
    density, x, y, levels = array_stats.kde2d(draws[0], draws[1], hdi_probs=_SHARES)
    return x, y, density.T, np.sort(levels)


def _thinned(draws: np.ndarray) -> np.ndarray:
    """Draws from the whole run, few enough to see each."""
    return draws[:, :: max(1, draws.shape[1] // _POINTS)]


def _within(draws: np.ndarray, limits: list[tuple[float, float]]) -> np.ndarray:
    inside = [(low <= z) & (z <= high) for z, (low, high) in zip(draws, limits, strict=True)]
    return np.logical_and(*inside)


def _correlations(pair: _Pair) -> str:
    found = "undefined" if np.isnan(pair.correlation) else f"= {pair.correlation:.2f}"
    return f"r {found}, reference {pair.expected:.2f}".replace("-", "\N{MINUS SIGN}")


def _explain(figure: Figure) -> None:
    handles = [
        Patch(color="0.85", label="reference: regions of 50 % and 90 %"),
        Line2D([], [], color="0.3", label="approximation: outlines of 50 % and 90 %"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
