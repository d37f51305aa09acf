"""Figures: what they show, that the text is legible, and that styles mean the same everywhere."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from pyro_elbo_lab import (
    plot_densities,
    plot_errors,
    plot_evidence_bounds,
    plot_forest,
    plot_k_hat,
    plot_pairs,
    plot_training,
)
from pyro_elbo_lab.figures import theme
from pyro_elbo_lab.trust.comparison.compare import Comparison, compare
from pyro_elbo_lab.trust.comparison.verdict import TOLERANCE
from tests.support.planted import normal, standard_normal
from tests.support.planted import tree as planted

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


def figures_with_legends(comparison: Comparison) -> list[Figure]:
    return [
        plot_forest(comparison),
        plot_densities(comparison),
        plot_training(comparison, losses()),
    ]


def figures(comparison: Comparison) -> list[Figure]:
    others = [plot_errors(comparison), plot_pairs(comparison), plot_k_hat(comparison)]
    return figures_with_legends(comparison) + others


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
    for figure in figures_with_legends(comparison):
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


def test_interactive_mode_outlives_the_settings() -> None:
    """A notebook's backend turns it on when it is loaded, which the first figure does."""
    before = matplotlib.is_interactive(), matplotlib.rcParams["font.size"]
    try:
        matplotlib.interactive(False)
        with theme.settings():
            assert matplotlib.rcParams["font.size"] == theme.PRINT["font.size"] != before[1]
            matplotlib.interactive(True)
        assert matplotlib.is_interactive()
        assert matplotlib.rcParams["font.size"] == before[1]
    finally:
        matplotlib.interactive(before[0])


def test_styles_differ_without_color() -> None:
    """As in greyscale print: eight markers, eight lines; and 24 names never share both."""
    eight = list(theme.styles(map(str, range(8))).values())[1:]
    for key in ("marker", "linestyle"):
        assert len({style[key] for style in eight}) == 8
    many = list(theme.styles(map(str, range(24))).values())[1:]
    assert len({(style["color"], style["marker"]) for style in many}) == 24


def points(axes: Axes) -> np.ndarray:
    """All that is scattered but the rim of the worst, shape (points, 2)."""
    return np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections[:-1]])


def test_errors_are_one_point_a_parameter(many: Comparison) -> None:
    figure = plot_errors(many)
    assert len(figure.axes) == len(NAMES)
    expected = many.table.loc[NAMES[0], ["mean_error", "sd_ratio"]].to_numpy()
    found = points(figure.axes[0])
    assert found.shape == (100, 2)
    np.testing.assert_allclose(found[found[:, 0].argsort()], expected[expected[:, 0].argsort()])
    within = (abs(expected - [0, 1]) <= TOLERANCE).all(1).sum()
    name, count, worst = figure.axes[0].get_title().split("\n")
    assert (name, count) == (NAMES[0], f"{within} of 100 within tolerance")
    farthest = int(many.table.loc[NAMES[0], "wasserstein"].argmax())
    assert worst.startswith("worst: theta[Phil") and worst.endswith(f" {farthest}]")
    rim = np.asarray(figure.axes[0].collections[-1].get_offsets())
    np.testing.assert_allclose(rim, expected[[farthest]])


def test_points_outside_the_box_are_filled(comparison: Comparison) -> None:
    axes = plot_errors(comparison).axes[NAMES.index("mvn, c")]  # shifted by 0.5, half as wide
    inside, outside, _ = axes.collections
    assert len(np.asarray(inside.get_offsets())) == 0
    assert len(np.asarray(outside.get_offsets())) == 3
    (box,) = axes.patches
    corners = np.asarray(box.get_extents().transformed(axes.transData.inverted()))
    np.testing.assert_allclose(corners, [[-TOLERANCE, 0.9], [TOLERANCE, 1.1]])


def test_everything_is_inside_the_map() -> None:
    trees = {"far": normal(1, shift=200.0), "point": normal(2, scale=0.0), "wide": normal(3, 0, 99)}
    for axes in plot_errors(compare(trees, standard_normal(0))).axes:
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        found = points(axes)
        assert len(found) == 3
        assert (left < found[:, 0]).all() and (found[:, 0] < right).all()
        assert (low <= found[:, 1]).all() and (found[:, 1] <= high).all()


def correlated(seed: int, rho: float) -> xr.DataTree:
    """Draws of mu, theta[north], theta[south]: the two thetas have correlation rho."""
    z = np.random.default_rng(seed).normal(size=(2, 2000, 3))
    z[..., 2] = rho * z[..., 1] + np.sqrt(1 - rho**2) * z[..., 2]
    return planted(z[..., 0], z[..., 1:])


def test_pairs_shows_the_pair_that_is_most_wrong() -> None:
    comparison = compare({"mean-field": correlated(1, 0.0)}, correlated(0, 0.95))
    (axes,) = plot_pairs(comparison).axes
    assert {axes.get_xlabel(), axes.get_ylabel()} == {"theta[north]", "theta[south]"}
    draws = [comparison.draws(axes.get_xlabel()), comparison.draws(axes.get_ylabel())]
    ours, theirs = (
        np.corrcoef([d[name] for d in draws])[0, 1] for name in ("mean-field", "reference")
    )
    expected = f"r = {ours:.2f}, reference {theirs:.2f}".replace("-", "\N{MINUS SIGN}")
    assert axes.get_title() == f"mean-field\n{expected}"


def test_pairs_of_points_and_of_far_clouds_are_drawn() -> None:
    trees = {"point": normal(1, scale=0.0), "far": normal(2, shift=50.0)}
    point, far = plot_pairs(compare(trees, standard_normal(0))).axes
    assert "r undefined" in point.get_title()
    assert len(point.get_lines()) == 1
    assert max(far.get_xlim()) < 10  # the panel stays with the reference


def test_pairs_on_a_line_have_no_regions_of_probability() -> None:
    x = np.random.default_rng(0).normal(size=(1, 500))
    line = planted(x, np.stack([x, 2 * x], -1))
    (axes,) = plot_pairs(compare({"q": line}, standard_normal(0))).axes
    assert axes.get_title().startswith("q\nr = 1.00")


def test_densities_of_discrete_parameters_are_shares() -> None:
    rng = np.random.default_rng(0)
    q, reference = (planted(rng.random(size=(1, 2000)) < p) for p in (0.2, 0.7))
    (axes,) = plot_densities(compare({"q": q}, reference)).axes
    expected = [np.mean(reference["posterior/mu"] == value) for value in (0, 1)]
    assert np.allclose([plt.getp(bar, "height") for bar in axes.patches], expected)


def test_pairs_of_discrete_parameters_are_clouds_at_their_values() -> None:
    rng = np.random.default_rng(0)
    draws = [rng.random(size=(1, 2000, 3)) < p for p in (0.2, 0.7)]
    q, reference = (planted(z[..., 0], z[..., 1:]) for z in draws)
    (axes,) = plot_pairs(compare({"q": q}, reference)).axes
    theirs, ours = (np.asarray(cloud.get_offsets()) for cloud in axes.collections)
    assert (abs(theirs[:, 0] - theirs[:, 0].round() + 0.18) < 0.151).all()
    assert (abs(ours[:, 0] - ours[:, 0].round() - 0.18) < 0.151).all()
    assert abs(ours.round().mean() - 0.2) < 0.1 and abs(theirs.round().mean() - 0.7) < 0.1


def test_pairs_needs_two_parameters() -> None:
    rng = np.random.default_rng(0)
    one, other = (planted(rng.normal(size=(2, 200))) for _ in range(2))
    with pytest.raises(ValueError, match="needs two parameters; the comparison has only one"):
        plot_pairs(compare({"q": one}, other))


def test_k_hat_stands_beside_its_threshold(comparison: Comparison) -> None:
    (axes,) = plot_k_hat(comparison).axes
    dataset = comparison.dataset
    places = [line.get_xdata() for line in axes.get_lines()]
    for name in NAMES:
        row = dataset.sel(approximation=name)
        for value in (row["k_hat"], row["k_hat_threshold"]):
            assert any(np.allclose(place, float(value)) for place in places)
    written = [text.get_text().replace("\N{MINUS SIGN}", "-") for text in axes.texts]
    assert written == [f"{value:.2f}" for value in dataset["k_hat"].values]


def test_k_hat_beyond_the_axis_of_cells_and_of_none() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1, 2000))
    cells = rng.exponential([0.1, 0.2, 1.2], size=(*z.shape, 3))  # their Pareto shapes
    wild = planted(z, log_weight=5 * rng.standard_cauchy(z.shape))
    stats = wild["sample_stats"].to_dataset()
    with_cells = stats.assign(cell_log_weight=(("chain", "draw", "cell"), cells))
    wild["sample_stats"] = xr.DataTree(with_cells)
    trees = {"wild": wild, "none": planted(z)}
    (axes,) = plot_k_hat(compare(trees, planted(rng.normal(size=(2, 500))))).axes
    texts = [text.get_text() for text in axes.texts]
    assert "1 of 3 cells above" in texts
    assert "no importance weights" in texts
    assert "inf" in texts
    shown = [np.asarray(line.get_xdata(), float) for line in axes.get_lines()]
    assert [x.tolist() for x in shown if x.size == 1] == [[axes.get_xlim()[1]]]


def test_far_approximations_do_not_squash_the_forest() -> None:
    near = plot_forest(compare({"q": normal(1)}, standard_normal(0))).axes[0]
    far = plot_forest(compare({"q": normal(1, shift=100.0)}, standard_normal(0))).axes[0]
    assert near.get_xscale() == "linear"
    assert max(far.get_xlim()) > 100
    left, right = far.transData.transform([(-1, 0), (1, 0)])[:, 0]
    assert right - left > far.bbox.width / 10


def test_arrows_point_to_densities_beyond_the_panel() -> None:
    trees = {"left": normal(1, shift=-50.0), "near": normal(2), "right": normal(3, shift=50.0)}
    axes = plot_densities(compare(trees, standard_normal(0))).axes[0]
    arrows = {m: line for line in axes.get_lines() if (m := line.get_marker()) in ("<", ">")}
    assert set(arrows) == {"<", ">"}
    assert arrows["<"].get_color() == theme.styles(trees)["left"]["color"]


@dataclass(frozen=True)
class Bound:
    value: float
    se: float = 0.1


@dataclass(frozen=True)
class Bounds:
    lower: Bound | None
    upper: Bound | None
    table: pd.DataFrame = field(default_factory=pd.DataFrame)

    def plot(self) -> Figure:
        raise NotImplementedError


def test_evidence_shows_both_bounds_and_what_all_leave_open(comparison: Comparison) -> None:
    evidence = {
        NAMES[0]: Bounds(Bound(-3.0), Bound(-1.0)),
        NAMES[1]: Bounds(Bound(-2.5), Bound(0.0)),
        NAMES[2]: Bounds(Bound(-9.0), None),
    }
    figure = plot_evidence_bounds(comparison, evidence)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == NAMES[:3]
    (band,) = axes.patches
    assert band.get_extents().transformed(axes.transData.inverted()).intervalx.tolist() == [
        pytest.approx(-2.5),
        pytest.approx(-1.0),
    ]
    drawn = [np.asarray(line.get_xdata(), float).tolist() for line in axes.get_lines()]
    assert [-3.0, -1.0] in drawn and [-9.0] in drawn
    assert len(visible_texts(figure)) > 5


def test_evidence_without_upper_bounds_has_no_band(comparison: Comparison) -> None:
    evidence = {NAMES[0]: Bounds(Bound(-3.0, float("nan")), None)}
    (axes,) = plot_evidence_bounds(comparison, evidence).axes
    assert not axes.patches
