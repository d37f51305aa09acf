"""Losses and objectives over the steps of training."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_elbo_lab.figures import theme
from pyro_elbo_lab.figures.panels import Comparison, entitle


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
    centers = [np.mean(part) for part in np.array_split(steps, len(medians))]
    ax.plot(steps, losses, linewidth=0.5, alpha=0.4, color="C0", label="every step")
    ax.plot(centers, medians, linewidth=1.8, color="C1", label=f"median of {window} steps")
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
        losses: arrays of shape `(num_steps,)` by name of an approximation.

    Example:
        >>> from pyro_elbo_lab import compare
        >>> from arviz_base import from_dict
        >>> rng = np.random.default_rng(0)
        >>> q, p = (from_dict({"posterior": {"mu": rng.normal(size=(2, 500))}}) for _ in range(2))
        >>> figure = plot_training(compare({"q": q}, p), {"q": np.linspace(9.0, 3.0, 100)})
        >>> figure.axes[0].get_ylabel()
        'objective (nats)'
    """
    styles = theme.styles(comparison.approximations)
    with theme.settings():
        figure, axes = plt.subplots(figsize=(theme.WIDTH, 3.4), layout="constrained")
        settled = []
        for name, values in losses.items():
            window = max(1, len(values) // 20)
            smooth = np.convolve(-np.asarray(values, float), np.full(window, 1 / window), "valid")
            steps = np.arange(window, len(values) + 1)
            axes.plot(steps, smooth, label=name, linewidth=1.3, **theme.line(styles[name]))
            settled.append(smooth[len(smooth) // 10 :])
        low, high = np.nanquantile(np.concatenate(settled), (0.005, 1.0))
        margin = 0.05 * (high - low) or 1.0
        if np.isfinite(margin):
            axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel("training step")
        axes.set_ylabel("objective (nats)")
        entitle(figure, "Training: running mean of the maximized objective")
        theme.legend(figure, {name: {**styles[name], "marker": ""} for name in losses})
    return figure
