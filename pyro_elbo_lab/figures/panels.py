"""What figures of a Comparison share: which parameters to show, panels, windows and titles."""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pyro_elbo_lab.figures import theme

_FEW_VALUES = 12


class Comparison(Protocol):
    """What figures ask of a comparison, as `compare` makes it: arrays, by names.

    `dataset` holds the numbers of every approximation and parameter, `approximations` the
    compared DataTrees, and `draws` gives all draws of a parameter, by approximation and under
    `"reference"`.
    """

    @property
    def dataset(self) -> xr.Dataset: ...
    @property
    def approximations(self) -> Mapping[str, xr.DataTree]: ...
    def draws(self, parameter: str) -> dict[str, np.ndarray]: ...


def farthest(comparison: Comparison, most: int) -> list[str]:
    """All parameters in their order, or the `most` farthest from the reference, worst first."""
    distance = comparison.dataset["wasserstein"].max("approximation")
    names = distance["parameter"].values
    if len(names) > most:
        names = names[np.argsort(-distance.values, kind="stable")[:most]]
    return [str(name) for name in names]


def entitle(figure: Figure, what: str) -> None:
    """Write a title at the left, where a narrow window shows it first."""
    figure.suptitle(what, x=0.01, ha="left", fontsize=10)


def selection(what: str, shown: int, total: int) -> str:
    """A title that says so where a figure shows a selection of the parameters."""
    if shown == total:
        return what
    return f"{what}: the {shown} of {total:,} parameters farthest from the reference"


def panels(
    count: int, columns: int, height: float, margin: float = 1.0, share: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of `height` inches, in at most `columns` columns."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(theme.WIDTH, margin + height * rows),
        layout="constrained",
        squeeze=False,
        sharex=share,
        sharey=share,
    )
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    for axes in grid.flat[max(0, count - columns) : count]:  # the lowest of their columns
        axes.tick_params(labelbottom=True)
    return figure, list(grid.flat[:count])


def wrapped(name: str, count: int) -> list[str]:
    """The lines of a name that stands above one of `count` panels."""
    return textwrap.wrap(name, 84 // min(3, count), break_on_hyphens=False)


def shortened(name: str) -> str:
    """A name of at most 24 characters: its beginning and its end."""
    return name if len(name) <= 24 else f"{name[:11]}\N{HORIZONTAL ELLIPSIS}{name[-12:]}"


def window(draws: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Where nearly all draws lie, but at most 5 reference sds from the reference mean."""
    reference = draws["reference"]
    most = reference.mean() - 5 * reference.std(), reference.mean() + 5 * reference.std()
    quantiles = np.array([np.quantile(values, (0.005, 0.995)) for values in draws.values()])
    low, high = max(quantiles[:, 0].min(), most[0]), min(quantiles[:, 1].max(), most[1])
    starts_at_zero = 0 < low < 0.05 * high and all((values >= 0).all() for values in draws.values())
    return (0.0 if starts_at_zero else low), high


def discrete_values(draws: Iterable[np.ndarray]) -> np.ndarray | None:
    """All values of a discrete parameter, of which there are 2 to 12; None for any other one."""
    found = np.unique(np.concatenate([values.ravel() for values in draws]))
    return found if 1 < len(found) <= _FEW_VALUES else None


def mark(axis: Axis, ticks: Iterable[float], place: Callable[[Any], Any]) -> None:
    """Put ticks where their labels have room: an eighth of the axis apart, the middle ones first.

    `place` is what the axis makes of a number before it is drawn.
    """
    middle_first = sorted(ticks, key=lambda tick: (abs(place(tick)), tick))
    room = (place(max(middle_first)) - place(min(middle_first))) / 8
    kept: list[float] = []
    for tick in middle_first:
        if all(abs(place(tick) - place(other)) > room for other in kept):
            kept.append(tick)
    axis.set_major_locator(FixedLocator(kept))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}"))
    )
