"""Figures: what they show, that the text is legible, and that styles mean the same everywhere."""

import itertools
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from pyro_elbo_lab.comparison import Comparison, compare
from pyro_elbo_lab.plots import plot_densities, plot_forest, plot_training
from tests.planted import normal, standard_normal

NAMES = [f"{guide}, {objective}" for guide in ("normal", "mvn") for objective in "abc"]
STEPS = 1000


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    trees = {name: normal(i, shift=0.1 * i, scale=1 - 0.1 * i) for i, name in enumerate(NAMES)}
    return compare(trees, standard_normal(9))


@pytest.fixture(scope="module")
def many() -> Comparison:
    """100 parameters with long names, whose errors grow with their index."""
    rng = np.random.default_rng(0)
    school = [f"Phillips Academy {i}" for i in range(100)]

    def tree(draws: np.ndarray) -> xr.DataTree:
        posterior = xr.Dataset(
            {"theta": (("chain", "draw", "school"), draws)}, coords={"school": school}
        )
        return xr.DataTree.from_dict({"posterior": posterior})

    q = rng.normal(size=(1, 500, 100)) + np.arange(100)
    return compare({name: tree(q) for name in NAMES}, tree(rng.normal(size=(4, 200, 100))))


def losses() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    wild = np.where(np.arange(STEPS) < 20, 1e6, 0.0)
    return {name: 30 + wild + rng.normal(size=STEPS) for name in NAMES}


def figures(comparison: Comparison) -> list[Figure]:
    return [
        plot_forest(comparison),
        plot_densities(comparison),
        plot_training(comparison, losses()),
    ]


def visible_texts(figure: Figure) -> list[tuple[Text, Bbox]]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    beyond = {id(label) for axes in figure.axes for label in labels_beyond(axes)}
    return [
        (text, text.get_window_extent(canvas.get_renderer()))
        for text in figure.findobj(Text)
        if isinstance(text, Text) and text.get_visible() and text.get_text().strip()
        if id(text) not in beyond
    ]


def labels_beyond(axes: Axes) -> Iterator[Text]:
    """Labels of ticks outside the limits, which exist but are not drawn."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high or not axes.axison:
                yield from (tick.label1, tick.label2)


@pytest.mark.parametrize("which", ["comparison", "many"])
def test_text_is_legible_and_does_not_overlap(which: str, request: pytest.FixtureRequest) -> None:
    for figure in figures(request.getfixturevalue(which)):
        texts = visible_texts(figure)
        assert len(texts) > 5
        assert min(float(text.get_fontsize()) for text, _ in texts) >= 8
        page = figure.bbox.padded(1)
        for text, box in texts:
            inside = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0
            assert inside and box.y1 <= page.y1, f"{text.get_text()!r} leaves the page"
        for (one, a), (other, b) in itertools.combinations(texts, 2):
            apart = not a.padded(-1).overlaps(b.padded(-1))
            assert apart, f"{one.get_text()!r} overlaps {other.get_text()!r}"


def test_an_approximation_looks_the_same_in_every_figure(comparison: Comparison) -> None:
    seen = []
    for figure in figures(comparison):
        (legend,) = figure.legends
        colors = [to_hex(line.get_color()) for line in legend.get_lines()]
        seen.append(
            dict(zip([text.get_text() for text in legend.get_texts()], colors, strict=True))
        )
    for styles in seen:
        assert len(set(styles.values())) == len(styles)
        assert all(styles[name] == seen[0][name] for name in NAMES)
    assert seen[0]["reference"] == "#000000"


def test_forest_draws_the_intervals_of_every_approximation(comparison: Comparison) -> None:
    (axes,) = plot_forest(comparison).axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["mu", "theta[north]", "theta[south]"]
    spans = [np.array(line.get_xdata(), float) for line in axes.get_lines() if line.get_color()]
    draws = comparison.draws("mu")
    reference = draws["reference"]
    for values in draws.values():
        z = (values - reference.mean()) / reference.std(ddof=1)
        interval = np.quantile(z, (0.05, 0.95))
        assert any(len(s) == 2 and np.allclose(s, interval) for s in spans)


def test_the_worst_parameters_are_shown_and_said_to_be(many: Comparison) -> None:
    figure = plot_forest(many, max_parameters=5)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    worst = many.table["wasserstein"].groupby("parameter").max().nlargest(5)
    assert labels == worst.index.tolist()
    assert "5 of 100 parameters farthest from the reference" in figure.get_suptitle()
    figure = plot_densities(many, max_parameters=5)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == labels
    assert "5 of 100" in figure.get_suptitle()


def test_densities_integrate_to_one_and_points_are_lines() -> None:
    comparison = compare({"q": normal(1), "point": normal(2, scale=0.0)}, standard_normal(0))
    axes = plot_densities(comparison).axes[0]
    reference, q, point = axes.get_lines()
    for line in (reference, q):
        x, y = (np.asarray(data, float) for data in line.get_data())
        # The window leaves out 1 % of the draws at most, and the rest is drawn to scale.
        assert 0.98 < np.trapezoid(y, x) < 1.01
    assert np.ptp(np.asarray(point.get_xdata(), float)) == 0


def test_positive_parameters_start_at_zero(comparison: Comparison) -> None:
    rng = np.random.default_rng(0)

    def tree(draws: np.ndarray) -> xr.DataTree:
        return xr.DataTree.from_dict({"posterior": xr.Dataset({"tau": (("chain", "draw"), draws)})})

    positive = compare(
        {"q": tree(rng.exponential(size=(1, 1000)))}, tree(rng.exponential(size=(4, 500)))
    )
    assert plot_densities(positive).axes[0].get_xlim()[0] == 0
    assert plot_densities(comparison).axes[0].get_xlim()[0] < 0


def test_wild_first_steps_do_not_flatten_the_training_curves(comparison: Comparison) -> None:
    (axes,) = plot_training(comparison, losses()).axes
    low, high = axes.get_ylim()
    assert low < -30 < high
    assert high - low < 5
    assert np.asarray(axes.get_lines()[0].get_xdata())[-1] == STEPS


@pytest.mark.parametrize("steps", [1, 3, 49])
def test_short_training_runs_are_drawn(comparison: Comparison, steps: int) -> None:
    short = {name: values[-steps:] for name, values in losses().items()}
    (axes,) = plot_training(comparison, short).axes
    assert all(np.asarray(line.get_xdata())[-1] == steps for line in axes.get_lines())


def test_methods_of_the_comparison_draw_the_same(comparison: Comparison) -> None:
    assert comparison.plot_forest().get_suptitle() == plot_forest(comparison).get_suptitle()
    assert len(comparison.plot_densities(max_parameters=2).axes) == 2
