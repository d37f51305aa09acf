"""The two parts of the ELBO during training."""

from collections.abc import Mapping
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_elbo_lab.figures import theme
from pyro_elbo_lab.figures.panels import entitle

_ELBO: dict[str, Any] = {"color": "black", "linestyle": "-"}
_BENEFIT: dict[str, Any] = {"color": theme.COLORS[0], "linestyle": (0, (5, 1.5))}
_GAP: dict[str, Any] = {"color": theme.COLORS[1], "linestyle": (0, (1.5, 1))}
_STYLES = {"ELBO": _ELBO, "benefit": _BENEFIT, "gap": _GAP}


class Term(Protocol):
    """A mean in nats."""

    @property
    def value(self) -> float: ...


class Parts(Protocol):
    """The parts of an ELBO, such as `Decomposition`."""

    @property
    def elbo(self) -> Term: ...
    @property
    def log_joint(self) -> Term: ...
    @property
    def entropy(self) -> Term: ...
    @property
    def log_likelihood(self) -> Term: ...
    @property
    def kl(self) -> Term: ...


def plot_decomposition(history: Mapping[int, Parts]) -> Figure:
    """Draw both decompositions of the ELBO against the training step.

    In the upper panels a curve is the benefit, the expected log-likelihood on the left and the
    expected log-joint on the right, and another the ELBO. The shaded gap between them is what the
    lower panels show: the cost KL(q || p(z)), which is taken away, and the entropy, which is added.
    The upper panels leave out what in the first tenth of training would flatten the rest.

    Args:
        history: what `decompose` found, by training step.

    Raises:
        ValueError: fewer than two steps.

    Example:
        >>> from types import SimpleNamespace as Object
        >>> def parts(i):
        ...     terms = {"elbo": -3 - 1 / i, "log_joint": -4 - 1 / i, "entropy": 1.0}
        ...     terms |= {"log_likelihood": -2.0, "kl": 1 + 1 / i}
        ...     return Object(**{name: Object(value=value) for name, value in terms.items()})
        >>> figure = plot_decomposition({10 * i: parts(i) for i in range(1, 21)})
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['nats', '', 'nats', '']
    """
    if len(history) < 2:
        raise ValueError(f"history has {len(history)} steps: a curve needs at least two.")
    steps = sorted(history)

    curves = {
        name: np.array([getattr(history[step], name).value for step in steps])
        for name in ("elbo", "log_likelihood", "kl", "log_joint", "entropy")
    }
    with theme.settings():
        figure, grid = plt.subplots(
            2,
            2,
            figsize=(theme.WIDTH, 4.4),
            layout="constrained",
            sharex=True,
            sharey="row",
            height_ratios=[3, 2],
        )
        names = ("log_likelihood", "kl"), ("log_joint", "entropy")
        titles = (
            ("ELBO = E$_q$[log p(x | z)] $-$ KL(q || p(z))", "KL(q || p(z))"),
            ("ELBO = E$_q$[log p(x, z)] + H[q]", "H[q] = $-$E$_q$[log q(z)]"),
        )
        for (above, below), (benefit, gap), title in zip(grid.T, names, titles, strict=True):
            _above(above, steps, curves["elbo"], curves[benefit], title[0])
            _below(below, steps, curves[gap], title[1])
        _limit(grid[0, 0], np.stack([curves["elbo"], *(curves[benefit] for benefit, _ in names)]))
        for axes in grid[:, 0]:
            axes.set_ylabel("nats")
        entitle(figure, "The parts of the ELBO during training")
        theme.legend(figure, _STYLES)
    return figure


def _above(axes: Axes, steps: list[int], elbo: np.ndarray, benefit: np.ndarray, title: str) -> None:
    axes.fill_between(steps, elbo, benefit, color=_GAP["color"], alpha=0.2, linewidth=0)
    axes.plot(steps, benefit, linewidth=1.5, **_BENEFIT)
    axes.plot(steps, elbo, linewidth=1.5, **_ELBO)
    axes.set_title(title, loc="left")


def _below(axes: Axes, steps: list[int], gap: np.ndarray, title: str) -> None:
    axes.axhline(0.0, color="0.7", linewidth=0.7)
    axes.fill_between(steps, 0.0, gap, color=_GAP["color"], alpha=0.2, linewidth=0)
    axes.plot(steps, gap, linewidth=1.5, **_GAP)
    axes.set_xlabel("training step")
    axes.set_title(title, loc="left")


def _limit(axes: Axes, curves: np.ndarray) -> None:
    settled = curves[:, curves.shape[1] // 10 :]
    margin = 0.06 * np.ptp(settled) or 1.0
    axes.set_ylim(settled.min() - margin, settled.max() + margin)
