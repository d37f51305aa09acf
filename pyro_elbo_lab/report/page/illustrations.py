"""The figures of a report: which are drawn, and what stands beside them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from pyro_elbo_lab.figures.errors import plot_errors
from pyro_elbo_lab.figures.evidence import Sandwich, plot_evidence_bounds, width
from pyro_elbo_lab.figures.marginals import plot_densities, plot_forest, row_height
from pyro_elbo_lab.figures.pairs import plot_pairs
from pyro_elbo_lab.figures.training import plot_training
from pyro_elbo_lab.figures.weights import plot_k_hat
from pyro_elbo_lab.trust.comparison.compare import Comparison

_PAGE = 8.4
"""Height of a printed page for the rows of the forest, in inches."""


@dataclass(frozen=True)
class Illustration:
    """A figure on the page, as SVG: its title, a text in its place, and how to read it."""

    svg: bytes
    title: str
    alt: str
    caption: str


def draw(
    comparison: Comparison,
    losses: Mapping[str, np.ndarray],
    evidence: Mapping[str, Sandwich],
    calibration: Figure | None,
) -> Iterator[tuple[str, Figure, str, str]]:
    """Name, figure, alternative text and caption of each figure that the comparison allows."""
    figure = plot_errors(comparison)
    yield "errors", figure, f"Scatter plots of all parameters. {_titles(figure)}", _ERRORS
    rows = int(_PAGE / row_height(1 + len(comparison.approximations)))
    figure = plot_forest(comparison, max_parameters=max(2, min(12, rows)))
    names = ", ".join(label.get_text() for label in figure.axes[0].get_yticklabels())
    alt = f"For each parameter the reference on top, the approximations below it: {names}."
    yield "forest", figure, f"Interval plot. {alt}", _FOREST
    figure = plot_densities(comparison)
    yield "densities", figure, f"Density plots, one a parameter: {_titles(figure)}", _DENSITIES
    if comparison.dataset.sizes["parameter"] > 1:
        figure = plot_pairs(comparison)
        yield "pairs", figure, f"Two clouds of draws in each plot. {_titles(figure)}", _PAIRS
    if comparison.dataset["k_hat"].notnull().any():
        yield "k-hat", plot_k_hat(comparison), _k_hats(comparison), _K_HAT
    if evidence:
        alt = f"Lower and upper bounds of the log evidence from {', '.join(evidence)}."
        yield "evidence", plot_evidence_bounds(comparison, evidence), alt, _EVIDENCE
        name = _tightest(evidence)
        alt = f"Lower and upper bounds against the number of draws of each, from {name}."
        yield "ladder", evidence[name].plot(), alt, f"From {name}, the tightest. {_LADDER}"
    if calibration is not None:
        alt = "Ranks of parameters drawn from the prior among draws of their approximations."
        if any(axes.get_title() for axes in calibration.axes):
            alt += f" {_titles(calibration)}"
        yield "calibration", calibration, alt, _CALIBRATION
    if losses:
        alt = f"Line plot of the objective against the training step: {', '.join(losses)}."
        yield "training", plot_training(comparison, losses), alt, _TRAINING


def _tightest(evidence: Mapping[str, Sandwich]) -> str:
    """The approximation whose bounds are closest; the first where none has both."""
    widths = {name: np.nan_to_num(width(found), nan=np.inf) for name, found in evidence.items()}
    return min(widths, key=lambda name: widths[name])


def _titles(figure: Figure) -> str:
    """What stands above the panels, as sentences."""
    titles = (axes.get_title().replace("\n", ", ") for axes in figure.axes)
    return "; ".join(title for title in titles if title) + "."


def _k_hats(comparison: Comparison) -> str:
    values = (
        f"{name}: {value:.2f}"
        for name, value in comparison.dataset["k_hat"].to_series().items()
        if not np.isnan(value)
    )
    return f"k-hat of each approximation against its threshold. {'; '.join(values)}."


_ERRORS = (
    "One point a parameter. Inside the grey box the mean is off by at most a tenth of the "
    "reference's sd and the sd by at most 10 %; points outside are filled, the worst has a black "
    "rim. Below the middle line the approximation is too sure of itself. The axes are logarithmic "
    "far from the middle."
)
_FOREST = (
    "Dot: median; thick line: 50 % interval; thin line: 90 % interval. The grey bands carry the "
    "reference's intervals down. Each parameter is shifted and scaled by the reference."
)
_DENSITIES = (
    "Kernel density estimates of the draws, in each parameter's own units (of a discrete one, the "
    "share of each value); the reference is grey. "
    "An arrow at the edge stands for an approximation that lies beyond it."
)
_PAIRS = (
    "For each approximation the two parameters whose correlation is farthest from the reference's: "
    "grey the reference, in color the approximation. Where a cloud leaves the grey region, or "
    "does not fill it, the joint distribution is wrong."
)
_K_HAT = (
    "Left of its threshold the importance weights of an approximation can be trusted, and with "
    "them its evidence estimate and a correction by weighting; right of it they cannot. The "
    "threshold grows with the number of draws, up to 0.7. Ticks: the weights of single cells of "
    "plates, which tell where the local part of an approximation is poor."
)
_EVIDENCE = (
    "The log evidence lies between the two ends of every bar, up to two standard errors (thin "
    "lines). Grey: what is left when all bars are taken together. A short bar says little of the "
    "guide itself, only that its importance weights pin the evidence down."
)
_LADDER = (
    "Bounds close in on the log evidence from both sides as they use more draws; hollow ones are "
    "not to be believed, for the reasons in evidence.csv."
)
_CALIBRATION = (
    "Where a line leaves its band, the approximation's posterior probabilities are not met by the "
    "frequencies of simulated data."
)
_TRAINING = (
    "A curve that still climbs at the end needs more steps. Objectives of different kinds are "
    "different bounds, so compare curves of one kind only."
)
