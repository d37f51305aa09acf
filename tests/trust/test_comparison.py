"""Distances, diagnostics and verdicts on planted draws whose answers are known."""

import math
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import special, stats

from pyro_elbo_lab.statistics.distances import (
    QUANTILES,
    Moments,
    coverage,
    differences,
    noise_floors,
    wasserstein,
)
from pyro_elbo_lab.statistics.importance import diagnose
from pyro_elbo_lab.trust.comparison import blocks, posteriors, predictive
from pyro_elbo_lab.trust.comparison.compare import compare
from tests.benchmarks import many_parameters
from tests.statistics.test_mixing import autoregressive
from tests.support.planted import normal, standard_normal, tree
from tests.support.tolerances import assert_mean_equals, critical_value

N = 4000  # draws on each side


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.5, 1.0), (0.0, 0.5), (-1.0, 2.0)])
def test_moments_match_the_closed_form(shift: float, scale: float) -> None:
    table = compare({"q": normal(1, shift, scale)}, standard_normal(0)).table.loc["q"]
    z = critical_value(2 * len(table))
    assert (abs(table["mean_error"] - shift) < z * table["mean_error_mcse"]).all()
    assert (abs(table["sd_ratio"] - scale) < z * table["sd_ratio_mcse"]).all()


def test_monte_carlo_errors_match_the_closed_form() -> None:
    """Both sides are independent normal draws; their errors are estimated to a few per cent."""
    table = compare({"q": normal(1, 0.5, 2.0)}, standard_normal(0)).table
    # The reference's own mean and sd scale the error, so its part is 1/sqrt(N), not 2/sqrt(N).
    np.testing.assert_allclose(table["mean_error_mcse"], math.sqrt(5 / N), rtol=0.15)
    np.testing.assert_allclose(table["sd_ratio_mcse"], math.sqrt((4 + 4) / (2 * N)), rtol=0.15)


def flat(draws: np.ndarray) -> np.ndarray:
    """Draws (P, chain, draw), sorted, as (P, N)."""
    return np.sort(draws.reshape(len(draws), -1), axis=1)


def test_wasserstein_equals_scipys(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(3, 2, 50)), rng.exponential(size=(3, 1, 77))
    expected = [stats.wasserstein_distance(x.ravel(), y.ravel()) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(wasserstein(flat(a), flat(b)), expected, rtol=1e-12)


def test_wasserstein_of_a_shift_is_the_shift(rng: np.random.Generator) -> None:
    a = rng.normal(size=(1, 2, 500))
    np.testing.assert_allclose(wasserstein(flat(a), flat(a + 0.7)), 0.7, rtol=1e-12)
    assert wasserstein(flat(a), flat(a)) == 0


def test_wasserstein_of_a_scale_matches_the_closed_form(rng: np.random.Generator) -> None:
    """W1 of Normal(0, s) and Normal(0, 1) is |s - 1| E|z|, E|z| = sqrt(2 / pi)."""
    draws = rng.normal(size=(200, 1, N)), rng.normal(size=(200, 1, N))
    assert_mean_equals(wasserstein(flat(draws[0] * 3), flat(draws[1])), 2 * math.sqrt(2 / math.pi))


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_coverage_matches_the_closed_form(scale: float, rng: np.random.Generator) -> None:
    q, p = scale * rng.normal(size=(200, 1, 20_000)), rng.normal(size=(200, 1, 1000))
    high = stats.norm.ppf(0.95) * scale
    assert_mean_equals(coverage(flat(q), flat(p)), 2 * stats.norm.cdf(high) - 1)


def test_identical_distributions_are_within_the_noise_floor(rng: np.random.Generator) -> None:
    """Distances of two samples of one distribution are no larger, on average, than the floor."""
    reference = rng.normal(size=(4, 1000, 500))
    reference = (reference - reference.mean((0, 1))) / reference.std((0, 1), ddof=1)
    floors = noise_floors(np.moveaxis(reference, -1, 0))
    result = compare({"q": tree_of(rng.normal(size=(1, N, 500)))}, tree_of(reference)).table
    agreement = {"mean_error": 0, "sd_ratio": 1, "wasserstein": 0, "coverage": 0.9}
    for column, value in agreement.items():
        floor = floors[f"{column}_floor"]
        np.testing.assert_allclose(result[f"{column}_floor"], floor)
        # The halves have 2000 draws each, the sides 4000: the floor is sqrt(2) times larger.
        assert abs(result[column] - value).mean() < floor.mean()


def tree_of(draws: np.ndarray) -> xr.DataTree:
    posterior = xr.Dataset({"x": (("chain", "draw", "i"), draws)})
    return xr.DataTree.from_dict({"posterior": posterior})


def test_poor_mixing_raises_the_floor(rng: np.random.Generator) -> None:
    shifted = rng.normal(size=(1, 4, 1000)) + np.array([0.0, 1.0, 0.0, 1.0])[:, None]
    floors = noise_floors(shifted)
    assert floors["mean_error_floor"] > 0.8 and floors["wasserstein_floor"] > 0.8


@pytest.mark.parametrize("k", [0.3, 0.7, 1.2])
def test_k_hat_recovers_a_pareto_tail(k: float, rng: np.random.Generator) -> None:
    """exp(k E) with E ~ Exponential(1) has Pareto shape k: the sign of the log-weights matters.

    The fit uses M = 3 sqrt(S) values, whose asymptotic sd is (1 + k) / sqrt(M), and draws k-hat
    towards 0.5 by 10 pseudo-observations of M + 10.
    """
    S = 100_000
    M = 3 * math.sqrt(S)
    k_hats = [diagnose(k * rng.exponential(size=S)).k_hat for _ in range(50)]
    expected = (M * k + 10 * 0.5) / (M + 10)
    assert abs(np.mean(k_hats) - expected) < critical_value() * (1 + k) / math.sqrt(50 * M)


def test_k_hat_of_equal_variances_is_small(rng: np.random.Generator) -> None:
    """Normal(0.3, 1) for Normal(0, 1): log-normal weights, all moments finite."""
    x = 0.3 + rng.normal(size=20_000)
    result = diagnose(-(x**2) / 2 + (x - 0.3) ** 2 / 2)
    assert result.k_hat < 0.4
    assert abs(result.log_evidence) < critical_value() * result.log_evidence_se


def test_elbo_and_evidence_match_the_closed_form(rng: np.random.Generator) -> None:
    """x | z ~ N(z, s^2), z ~ N(0, 1), q = N(0.2, sqrt 0.6): known log p(x), ELBO."""
    x, s = 1.3, math.sqrt(0.5)
    scale = math.sqrt(0.6)
    z = rng.normal(0.2, scale, size=50_000)
    log_w = stats.norm.logpdf(x, z, s) + stats.norm.logpdf(z) - stats.norm.logpdf(z, 0.2, scale)
    result = diagnose(log_w)
    assert abs(result.elbo - -2.457778) < critical_value() * result.elbo_se
    assert abs(result.log_evidence - -1.685004) < critical_value() * result.log_evidence_se
    assert result.k_hat_threshold == 0.7


@pytest.mark.parametrize(("S", "threshold"), [(100, 0.5), (1000, 2 / 3), (10_000, 0.7)])
def test_threshold_depends_on_the_number_of_draws(S: int, threshold: float) -> None:
    assert diagnose(np.linspace(0, 1, S)).k_hat_threshold == pytest.approx(min(threshold, 0.7))


def test_constant_weights_are_perfect() -> None:
    result = diagnose(np.full(1000, -3.5) + 1e-7 * np.arange(1000))
    assert result.k_hat == 0
    assert result.log_evidence == pytest.approx(-3.5, abs=1e-3)
    assert result.weight_ess == pytest.approx(1000)


def test_evidence_is_withheld_when_k_hat_is_too_large(rng: np.random.Generator) -> None:
    result = diagnose(1.5 * rng.exponential(size=5000))
    assert result.k_hat > 0.7
    assert math.isnan(result.log_evidence) and math.isnan(result.log_evidence_se)


def test_some_draws_outside_the_support_are_allowed(rng: np.random.Generator) -> None:
    """A uniform target on half of a uniform guide's range: half the weights are 0, the rest 2."""
    log_w = np.where(rng.uniform(size=4000) < 0.5, -np.inf, math.log(2))
    result = diagnose(log_w)
    assert result.elbo == -np.inf
    assert abs(result.log_evidence) < critical_value() * result.log_evidence_se


VERDICTS = {
    "good": normal(1),
    "under-dispersed": normal(2, scale=0.45),
    "biased": normal(3, shift=2.5),
    "good after importance weighting": normal(4, scale=1.5),
    "point estimate": normal(5, scale=0.0),
}


@pytest.mark.parametrize("kind", VERDICTS)
def test_planted_failures_get_their_verdict(kind: str) -> None:
    comparison = compare({"q": VERDICTS[kind]}, standard_normal(0))
    assert comparison.findings["q"].kind == kind
    assert comparison.verdicts["q"].lower().startswith(kind)


def test_without_weights_or_with_a_bad_k_hat(rng: np.random.Generator) -> None:
    q = normal(1)
    heavy = q.copy()
    heavy["sample_stats"].dataset["log_weight"].values[:] = 2 * rng.exponential(size=(1, N))
    del q["sample_stats"]
    comparison = compare({"weightless": q, "heavy": heavy}, standard_normal(0))
    assert [found.kind for found in comparison.findings.values()] == ["good", "good marginals"]
    assert "a classifier tells" in comparison.verdicts["weightless"]
    assert "exceeds 0.70" in comparison.verdicts["heavy"]


def test_a_lost_mode_is_found_though_k_hat_is_low(rng: np.random.Generator) -> None:
    """The guide is exact on one of two modes: its weights are constant, and blind to the other."""
    mode = np.where(rng.uniform(size=(4, 1000)) < 0.5, -5.0, 5.0)
    target = tree(mode + rng.normal(size=(4, 1000)))
    q = tree(5 + rng.normal(size=(1, N)), log_weight=np.full((1, N), -math.log(2)))
    comparison = compare({"one mode": q}, target)
    assert comparison.findings["one mode"].kind == "wrong mode"
    assert "misses a region" in comparison.verdicts["one mode"]


def test_too_few_draws_cannot_tell() -> None:
    comparison = compare(
        {"q": normal(1, num_draws=100)}, standard_normal(0, num_draws=50, reliable=1)
    )
    assert comparison.findings["q"].kind == "cannot tell"


def test_an_unreliable_reference_overrides_every_verdict() -> None:
    reference = standard_normal(0, reliable=0, reliability="R-hat is 1.32 in mu.")
    comparison = compare({"good": normal(1), "narrow": normal(2, scale=0.3)}, reference)
    assert not comparison.reference_reliable
    assert comparison.reference_note == "R-hat is 1.32 in mu."
    for name in ("good", "narrow"):
        assert comparison.findings[name].kind == "reference unreliable"
        assert (
            "reference itself cannot be trusted (R-hat is 1.32 in mu)" in comparison.verdicts[name]
        )


def test_verdicts_raise_no_false_alarm_on_many_parameters(rng: np.random.Generator) -> None:
    reference, q = rng.normal(size=(4, 1000, 1000)), rng.normal(size=(1, N, 1000))
    comparison = compare({"q": tree_of(q)}, tree_of(reference))
    assert comparison.findings["q"].kind == "good marginals"
    assert len(comparison.table) == 1000


def test_labels_and_table() -> None:
    comparison = compare({"a": normal(1), "b": normal(2)}, standard_normal(0))
    table = comparison.table
    assert isinstance(table, pd.DataFrame)
    assert table.loc["b"].index.tolist() == ["mu", "theta[north]", "theta[south]"]
    assert comparison.summary.index.tolist() == ["a", "b"]
    assert comparison.summary.loc["a", "verdict"] == "good"
    assert not table.isna().to_numpy().any()


def test_elements_are_matched_by_coordinate() -> None:
    q = normal(1, shift=0.0)
    q["posterior"].dataset["theta"].values[..., 1] += 3
    backwards = xr.DataTree.from_dict({"posterior": q["posterior"].isel(site=[1, 0]).to_dataset()})
    table = compare({"q": backwards}, standard_normal(0)).table.loc["q", "mean_error"]
    assert abs(table["theta[north]"]) < 0.2 and abs(table["theta[south]"] - 3) < 0.2


def test_draws_gives_what_was_compared() -> None:
    reference, q = standard_normal(0), normal(1)
    found = compare({"q": q}, reference).draws("theta[south]")
    np.testing.assert_array_equal(found["q"], q["posterior"].dataset["theta"].values[0, :, 1])
    assert found["reference"].shape == (4000,)


def test_parameters_missing_on_either_side_are_named() -> None:
    q = normal(1)
    changed = q["posterior"].to_dataset().assign(z=q["posterior"].dataset["mu"] + 1)
    q["posterior"] = xr.DataTree(changed.drop_vars("theta"))
    comparison = compare({"q": q, "full": normal(2)}, standard_normal(0))
    assert comparison.table.loc["q"].index.tolist() == ["mu"]
    assert len(comparison.table.loc["full"]) == 3
    assert any("missing in the reference: z" in note for note in comparison.notes)
    assert any("missing in 'q': theta" in note for note in comparison.notes)


def test_constants_are_left_out_and_named() -> None:
    reference = standard_normal(0)
    reference["posterior"].dataset["theta"].values[..., 0] = 1.0
    comparison = compare({"q": normal(1)}, reference)
    assert comparison.table.loc["q"].index.tolist() == ["mu", "theta[south]"]
    assert comparison.notes == ("not compared, constant in the reference: theta[north]",)


def test_save_round_trips(tmp_path: Path) -> None:
    comparison = compare({"a": normal(1), "b": normal(2)}, standard_normal(0))
    folder = comparison.save(tmp_path / "new" / "folder")
    with xr.open_dataset(folder / "comparison.nc", engine="h5netcdf") as saved:
        xr.testing.assert_allclose(saved.load(), comparison.dataset)
    table = pd.read_csv(folder / "table.csv", index_col=[0, 1])
    np.testing.assert_allclose(table.to_numpy(), comparison.table.to_numpy())
    assert pd.read_csv(folder / "summary.csv", index_col=0).loc["a", "verdict"] == "good"


def test_str_shows_summary_and_verdicts() -> None:
    comparison = compare({"narrow": normal(1, scale=0.45)}, standard_normal(0))
    assert comparison.verdicts["narrow"] in str(comparison)
    assert "k_hat" in str(comparison)


def nan_draw(q: xr.DataTree) -> None:
    q["posterior"].dataset["theta"].values[0, 7, 1] = np.nan


def nan_weight(q: xr.DataTree) -> None:
    q["sample_stats"].dataset["log_weight"].values[0, 7] = np.nan


def no_posterior(q: xr.DataTree) -> None:
    del q["posterior"]


def empty_posterior(q: xr.DataTree) -> None:
    q["posterior"] = xr.DataTree()


def other_shape(q: xr.DataTree) -> None:
    q["posterior"] = xr.DataTree(q["posterior"].to_dataset().isel(site=[0]))


def other_coordinates(q: xr.DataTree) -> None:
    q["posterior"] = xr.DataTree(q["posterior"].to_dataset().assign_coords(site=["east", "west"]))


def nothing_in_common(q: xr.DataTree) -> None:
    renamed = q["posterior"].to_dataset().rename(mu="m", theta="t")
    q["posterior"] = xr.DataTree(renamed)


def few_draws(q: xr.DataTree) -> None:
    q["posterior"] = xr.DataTree(q["posterior"].to_dataset().isel(draw=slice(5)))


def no_chains(q: xr.DataTree) -> None:
    q["posterior"] = xr.DataTree(q["posterior"].to_dataset().isel(chain=0))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (nan_draw, r"'theta' of 'q' has 1 NaN .* 4000 draws of theta\[south\]"),
        (nan_weight, r"sample_stats variable 'log_weight' of 'q': 1 of 4000 log-weights are NaN"),
        (no_posterior, r"'q' has no posterior group, only \['sample_stats'\]"),
        (empty_posterior, "the posterior group of 'q' has no variables of numbers"),
        (other_shape, r"'theta' has shape \(1,\) in 'q' and \(2,\) in the reference"),
        (other_coordinates, r"'site' has the values \['east', 'west'\] in 'q'"),
        (nothing_in_common, r"no varying parameter in common: 'q' has \['m', 't'\]"),
        (few_draws, r"'q' has 1 chains of 5 draws; at least 25"),
        (no_chains, r"'mu' of 'q' has dimensions \('draw',\) and lacks \['chain'\]"),
    ],
)
def test_bad_trees_are_refused(spoil: object, message: str) -> None:
    q = normal(1)
    assert callable(spoil)
    spoil(q)
    with pytest.raises(ValueError, match=message):
        compare({"q": q}, standard_normal(0))


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="no approximation"):
        compare({}, standard_normal(0))
    with pytest.raises(ValueError, match="'reference' is the name of the reference"):
        compare({"reference": normal(1)}, standard_normal(0))


def test_errors_of_the_wasserstein_distance_are_those_that_are_made(
    rng: np.random.Generator,
) -> None:
    """Of N(0.5, 1.5) and N(0, 1): the sd of the distance over 500 repetitions is the error."""
    q, r = 0.5 + 1.5 * rng.normal(size=(500, 1, 2000)), rng.normal(size=(500, 4, 250))
    found = differences(Moments.of(q), Moments.of(r))
    ratio = found["wasserstein"].std() / found["wasserstein_mcse"].mean()
    assert abs(ratio - 1) < critical_value() / math.sqrt(2 * 500)
    of_chains = differences(Moments.of(autoregressive(0.8, (500, 4, 500))), Moments.of(r + 1))
    assert 0.8 < of_chains["wasserstein"].std() / of_chains["wasserstein_mcse"].mean() < 1.2


def test_quantiles_and_widths_match_the_closed_form(rng: np.random.Generator) -> None:
    """Of N(0.5, 1.5) beside N(0, 1), in 200 parameters."""
    q, r = 0.5 + 1.5 * rng.normal(size=(200, 1, N)), rng.normal(size=(200, 4, 2000))
    found = differences(Moments.of(q), Moments.of(r))
    for name, p in QUANTILES.items():
        bias = 3 / N  # of an empirical quantile: O(1/N)
        error = found[name].mean() - 0.5 - 0.5 * stats.norm.ppf(p)
        assert abs(error) < bias + critical_value() * found[name].std() / math.sqrt(200)
    for name in ("middle_ratio", "tail_ratio"):
        errors = (found[name] - 1.5) / found[f"{name}_mcse"]
        assert abs(errors.mean()) < 0.2 + critical_value() / math.sqrt(200)
        assert 0.75 < errors.std() < 1.33
    expected = stats.norm.cdf(0.5 + 1.5 * 0.6745) - stats.norm.cdf(0.5 - 1.5 * 0.6745)
    assert_mean_equals(found["coverage_50"], expected)


def test_tail_ratio_sees_tails_that_the_middle_does_not() -> None:
    z = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    t = stats.t.ppf(stats.norm.cdf(z), 3) * stats.norm.ppf(0.75) / stats.t.ppf(0.75, 3)
    found = differences(Moments.of(t[None, None]), Moments.of(z[None, None]))
    assert found["middle_ratio"] == pytest.approx(1, rel=1e-3)
    expected = stats.t.ppf(0.99, 3) / stats.t.ppf(0.75, 3)
    expected /= stats.norm.ppf(0.99) / stats.norm.ppf(0.75)
    assert found["tail_ratio"] == pytest.approx(expected, rel=1e-2)


def test_predictive_difference_matches_the_closed_form(rng: np.random.Generator) -> None:
    """y_i ~ N(mu, 1): the ELPD of a guide N(m, s) beside the posterior N(mean y, 1/√n)."""
    n = 20
    y = rng.normal(size=n)
    exact = rng.normal(y.mean(), 1 / math.sqrt(n), size=(4, 1000))
    q = rng.normal(y.mean() + 0.5, 1 / math.sqrt(n), size=(1, 4000))
    trees = [with_log_likelihood(mu, y) for mu in (q, exact)]
    row = compare({"q": trees[0]}, trees[1]).summary.loc["q"]
    # Without y_i, each is a normal of precision n - 1, the guide's shifted as the posterior's.
    rest, variance = (n * y.mean() - y) / (n - 1), 1 + 1 / (n - 1)
    shifted = rest + 0.5 * n / (n - 1)
    pointwise = stats.norm.logpdf(y, shifted, variance**0.5) - stats.norm.logpdf(
        y, rest, variance**0.5
    )
    assert row["elpd_difference"] == pytest.approx(pointwise.sum(), abs=0.2)
    assert row["elpd_difference_se"] == pytest.approx(math.sqrt(n) * pointwise.std(ddof=1), rel=0.1)
    assert row["elpd_pareto_k"] < 0.7
    assert math.isnan(
        compare({"q": trees[0]}, standard_normal(0)).summary.loc["q", "elpd_difference"]
    )


@pytest.mark.parametrize("constant", [0.0, -1.5])
def test_constant_likelihoods_need_no_leaving_out(
    constant: float, rng: np.random.Generator
) -> None:
    """Of masked observations, or of a point: their density counts as it is."""
    y = rng.normal(size=5)
    q, p = (with_log_likelihood(rng.normal(size=(2, 1000)), y) for _ in range(2))
    plain = compare({"q": q}, p).summary.loc["q", "elpd_difference"]
    for side, value in ((q, constant), (p, 2 * constant)):
        old = side["log_likelihood"].to_dataset()["y"]
        more = xr.full_like(old.isel(i=[0]), value)
        longer = xr.concat([old, more], "i")
        side["log_likelihood"] = xr.DataTree(xr.Dataset({"y": longer}))
    row = compare({"q": q}, p).summary.loc["q"]
    assert row["elpd_difference"] == pytest.approx(plain - constant)
    point = with_log_likelihood(np.full((1, 10), 0.3), y)
    expected = stats.norm.logpdf(y, 0.3).sum()
    assert predictive._pointwise(point, ["y"])[0].sum() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("varying", [[0], [0, 500, 999], range(500), range(0, 1000, 3)])
def test_a_point_that_varies_by_rounding_is_a_point(dtype: type, varying: Sequence[int]) -> None:
    """Draws of one value, some of them a unit in the last place off, and what follows from them."""
    y = np.linspace(-2, 2, 7)
    mu: np.ndarray = np.full((1, 1000), 7.58, dtype)
    mu[0, list(varying)] = np.nextafter(mu[0, 0], dtype(8))
    point = tree(mu)
    density = stats.norm.logpdf(y, mu[..., None].astype(float), 2.0).astype(dtype)
    density[0, list(varying)] = np.nextafter(density[0, -1], dtype(0))
    point["log_likelihood"] = xr.DataTree(xr.Dataset({"y": (("chain", "draw", "i"), density)}))
    weights = xr.Dataset({"log_weight": (("chain", "draw"), np.zeros((1, 1000)))})
    point["sample_stats"] = xr.DataTree(weights)
    rng = np.random.default_rng(0)
    target = with_log_likelihood(rng.normal(7.0, 0.2, size=(4, 1000)), y)
    found = compare({"point": point}, target)
    assert found.findings["point"].kind == "point estimate"
    assert found.table.loc[("point", "mu"), "sd_ratio"] < 1e-12
    row = found.summary.loc["point"]
    assert math.isnan(row["k_hat"])
    exact = stats.norm.logpdf(y, 7.58, 2.0).sum()
    theirs = predictive._pointwise(target, ["y"])[0].sum()
    assert row["elpd_difference"] == pytest.approx(exact - theirs, abs=1e-3)


def test_weights_without_a_tail_need_no_smoothing() -> None:
    """Observations that nearly every draw finds certain, or of a guide that hardly varies."""
    rng = np.random.default_rng(0)
    values = np.zeros((4, 1000, 3))
    values[:, :20] = 0.5  # these have the smallest weights
    values[..., 2] = -1.0 + 1e-7 * rng.normal(size=(4, 1000))
    group = xr.DataTree(xr.Dataset({"y": (("chain", "draw", "i"), values)}))
    elpd, k = predictive._pointwise(xr.DataTree(children={"log_likelihood": group}), ["y"])
    expected = math.log(4000) - special.logsumexp(-values.reshape(-1, 3), axis=0)
    np.testing.assert_allclose(elpd, expected, atol=1e-12)
    assert (k == 0).all()


def with_log_likelihood(mu: np.ndarray, y: np.ndarray) -> xr.DataTree:
    result = tree(mu)
    log_likelihood = stats.norm.logpdf(y, mu[..., None], 1)
    variables = {"y": (("chain", "draw", "i"), log_likelihood)}
    result["log_likelihood"] = xr.DataTree(xr.Dataset(variables))
    return result


def test_cost_is_read_from_the_trees() -> None:
    q, reference = normal(1), standard_normal(0)
    q.attrs |= {"seconds": 1.5, "gradient_evaluations": 2000}
    reference["sample_stats"] = xr.DataTree(
        xr.Dataset({"n_steps": (("chain", "draw"), np.full((4, 1000), 7))})
    )
    comparison = compare({"q": q}, reference)
    row = comparison.summary.loc["q"]
    assert (row["seconds"], row["gradient_evaluations"]) == (1.5, 2000)
    assert comparison.dataset.attrs["reference_gradient_evaluations"] == 28_000
    assert math.isnan(comparison.dataset.attrs["reference_seconds"])


def test_blocks_give_what_single_parameters_give(rng: np.random.Generator) -> None:
    """300 parameters of three variables, more than a block, one of them a matrix."""
    shapes = {"a": (), "b": (280,), "c": (4, 5)}
    dims = {"a": (), "b": ("i",), "c": ("j", "k")}

    def draws(chains: int) -> xr.DataTree:
        return xr.DataTree.from_dict(
            {
                "posterior": xr.Dataset(
                    {
                        name: (
                            ("chain", "draw", *dims[name]),
                            rng.normal(size=(chains, 100, *shape)),
                        )
                        for name, shape in shapes.items()
                    }
                )
            }
        )

    q, reference = draws(1), draws(2)
    table = compare({"q": q}, reference).table.loc["q"]
    assert len(table) == 301
    for label, where in {"a": {}, "b[270]": {"i": 270}, "c[2, 3]": {"j": 2, "k": 3}}.items():
        name = label[0]
        alone = [np.asarray(t["posterior"][name].isel(where)) for t in (q, reference)]
        expected = compare({"q": tree(alone[0])}, tree(alone[1])).table.loc["q"].iloc[0]
        same = [column for column in table if "correlation" not in column]
        np.testing.assert_allclose(table.loc[label, same], expected[same])


def test_trees_are_read_from_files_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing larger than a block is ever read; the numbers are those of trees in memory."""
    monkeypatch.setattr(blocks, "SIZE", 32)
    rng = np.random.default_rng(0)
    trees = [tree_of(rng.normal(size=(chains, 200, 300))) for chains in (1, 4)]
    paths = [tmp_path / name for name in ("q.nc", "reference.nc")]
    for one, path in zip(trees, paths, strict=True):
        one.to_netcdf(path, engine="h5netcdf")
    sizes = []
    elements = posteriors.elements

    def watched(array: xr.DataArray, index: np.ndarray) -> np.ndarray:
        sizes.append(len(index))
        return elements(array, index)

    monkeypatch.setattr(posteriors, "elements", watched)
    with (
        xr.open_datatree(paths[0], engine="h5netcdf") as q,
        xr.open_datatree(paths[1], engine="h5netcdf") as reference,
    ):
        found = compare({"q": q}, reference)
        assert not q["posterior"]["x"].variable._in_memory
    assert len(sizes) > 20 and max(sizes) <= 32
    xr.testing.assert_allclose(found.dataset, compare({"q": trees[0]}, trees[1]).dataset)


def test_memory_does_not_grow_with_the_parameters(tmp_path: Path) -> None:
    """What is allocated beyond the result stays the same for four times as many parameters."""

    def peak(num_parameters: int) -> int:
        paths = [tmp_path / f"{name}{num_parameters}.nc" for name in ("q", "reference")]
        for seed, path in enumerate(paths):
            many_parameters.write(path, num_parameters, 50, seed)
        tracemalloc.start()
        many_parameters.compare_files(*paths)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(600)  # what is allocated once
    small, large = peak(1000), peak(4000)
    draws = 2 * 4 * 50 * 3000 * 8
    assert large - small < 0.7 * draws
