"""How all figures look: sizes, fonts, and one color, marker and line for each approximation.

The reference is black or grey; each approximation keeps one color of the Okabe-Ito palette (its
colors stay apart in the common forms of color blindness), one marker and one line style in every
figure.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle

WIDTH = 7.2
"""The width of a figure, in inches: a printed page less its margins."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

REFERENCE: dict[str, Any] = {"color": "black", "marker": "o", "linestyle": "-"}

PRINT: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "figure.dpi": 110,
}
"""Settings of matplotlib within `settings`."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = (
    "-",
    (0, (5, 1.5)),
    (0, (1.5, 1)),
    (0, (5, 1, 1, 1)),
    (0, (8, 2)),
    (0, (3, 1)),
    (0, (8, 1.5, 1.5, 1.5, 1.5, 1.5)),
    (0, (1.5, 2.5)),
)


@contextmanager
def settings() -> Iterator[None]:
    """`PRINT` within a block, and the caller's settings after it.

    Matplotlib loads its backend with the first figure. A notebook's backend then turns interactive
    mode on, which has to outlive the block: without it later figures are not shown.
    """
    with plt.rc_context(PRINT):
        yield
        interactive = plt.isinteractive()
    matplotlib.interactive(interactive)


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Color, marker and line style by name, those of "reference" first.

    From the seventh name on colors return, from the ninth on markers and lines; no two of 24 names
    have both in common.

    >>> list(styles(["mean-field"]))
    ['reference', 'mean-field']
    """
    found: dict[str, dict[str, Any]] = {"reference": REFERENCE}
    for i, name in enumerate(names):
        found[name] = {
            "color": COLORS[i % len(COLORS)],
            "marker": _MARKERS[i % len(_MARKERS)],
            "linestyle": _LINES[i % len(_LINES)],
        }
    return found


def line(style: Mapping[str, Any]) -> dict[str, Any]:
    """What of a style concerns a line without markers."""
    return {key: style[key] for key in ("color", "linestyle")}


def legend(figure: Figure, shown: Mapping[str, Mapping[str, Any]]) -> None:
    """One legend below all axes, with as many columns as fit."""
    handles = [Line2D([], [], label=name, linewidth=1.6, **style) for name, style in shown.items()]
    longest = max(map(len, shown))
    columns = max(1, min(len(shown), int(WIDTH / (0.5 + 0.06 * longest))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def drawn(style: Mapping[str, Any]) -> dict[str, Any]:
    """A style in terms of SVG: color, the marker's outline within ±0.5, and dashes.

    >>> drawn(REFERENCE)["color"], drawn(REFERENCE)["dashes"]
    ('black', '')
    """
    marker = MarkerStyle(style["marker"])
    (outline, *_) = marker.get_path().transformed(marker.get_transform()).to_polygons()
    dashes = "" if style["linestyle"] == "-" else " ".join(map(str, style["linestyle"][1]))
    return {"color": style["color"], "outline": outline, "dashes": dashes}
