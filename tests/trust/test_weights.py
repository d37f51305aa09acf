"""What importance weights say and repair, against closed forms, for a guide that is wrong."""

import math
import warnings
from collections.abc import Iterator

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from arviz_stats.base import array_stats
from pyro.infer.autoguide import AutoDelta
from scipy import stats

from pyro_elbo_lab import (
    from_guide,
    importance_diagnostics,
    k_hat,
    loo_approximate_posterior,
    resampled,
    weighted,
)
from tests.support.tolerances import assert_mean_equals, critical_value

X = torch.tensor([1.3, 0.2, 2.5], dtype=torch.float64)
POSTERIOR = float(X.sum() / (1 + len(X))), 1 / math.sqrt(1 + len(X))
NUM_TREES, NUM_DRAWS = 40, 4000


def model(x: torch.Tensor = X) -> None:
    z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
    pyro.deterministic("twice", 2 * z)
    with pyro.plate("patient", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: torch.Tensor = X) -> None:
    pyro.sample("z", dist.Normal(x.new_tensor(POSTERIOR[0] + 0.3), 1.3 * POSTERIOR[1]))


def narrow(x: torch.Tensor = X) -> None:
    pyro.sample("z", dist.Normal(x.new_tensor(POSTERIOR[0]), 0.3 * POSTERIOR[1]))


@pytest.fixture(scope="module")
def trees() -> Iterator[list[xr.DataTree]]:
    pyro.set_rng_seed(0)
    yield [from_guide(guide, model, X, num_samples=NUM_DRAWS) for _ in range(NUM_TREES)]


def test_k_hat_of_exact_pareto_tails() -> None:
    """exp(k E), E exponential, is Pareto of shape k; the estimate has sd (1 + k) / √(tail size),
    and is drawn towards 1/2 by a prior that counts for ten values."""
    num, shapes = 40_000, np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    tail = 3 * math.sqrt(num)
    log_w = np.random.default_rng(0).exponential(shapes, size=(4, num // 4, len(shapes)))
    error = np.abs(k_hat(log_w) - (tail * shapes + 5) / (tail + 10))
    assert (error < critical_value(len(shapes)) * (1 + shapes) / math.sqrt(tail)).all()


def test_k_hat_of_each_cell() -> None:
    """A Gaussian with 1 - k of the posterior's variance has weights of shape k."""
    scales = torch.tensor([[1.0, 0.9], [0.6, 0.4]])

    def cells() -> None:
        with pyro.plate("row", 2, dim=-2), pyro.plate("column", 2, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2, 2), 1.0))

    def tight() -> None:
        with pyro.plate("row", 2, dim=-2), pyro.plate("column", 2, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2, 2), scales))

    pyro.set_rng_seed(0)
    found = importance_diagnostics(from_guide(tight, cells, num_samples=20_000))
    assert found["cell_k_hat"].dims == ("row", "column")
    assert found["cell_k_hat"].values[0, 0] == 0  # exact
    assert (np.diff(found["cell_k_hat"].values.ravel()) > 0).all()
    limits = np.array([[0.0, 0.19], [0.64, 0.84]])  # approached from below, with log corrections
    assert (found["cell_k_hat"].values <= limits + 0.15).all()
    assert found["cell_k_hat"].max() < found["k_hat"] + 0.15
    assert found["k_hat_threshold"] == 0.7
    assert 0 < found["weight_ess"] < 20_000


def test_the_threshold_falls_with_fewer_draws() -> None:
    tree = from_guide(guide, model, X, num_samples=100)
    assert importance_diagnostics(tree)["k_hat_threshold"] == pytest.approx(0.5)


def test_weighted_moments_are_the_posteriors(trees: list[xr.DataTree]) -> None:
    found = [weighted(tree, (0.1, 0.9))["posterior"] for tree in trees]
    mean, sd, _, low, high = np.transpose([tree["z"].values for tree in found])
    assert_mean_equals(mean, POSTERIOR[0])
    assert_mean_equals(sd, POSTERIOR[1])
    assert_mean_equals(low, stats.norm.ppf(0.1, *POSTERIOR))
    assert_mean_equals(high, stats.norm.ppf(0.9, *POSTERIOR))
    unweighted = [draws_of(tree).mean() for tree in trees]
    with pytest.raises(AssertionError):
        assert_mean_equals(unweighted, POSTERIOR[0])


def test_weighted_error_is_the_spread_over_repetitions(trees: list[xr.DataTree]) -> None:
    found = [weighted(tree)["posterior"]["z"] for tree in trees]
    said = np.mean([z.sel(statistic="mcse_mean") for z in found])
    spread = np.std([z.sel(statistic="mean") for z in found], ddof=1)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], NUM_TREES - 1) / (NUM_TREES - 1)
    assert low < (spread / said) ** 2 < high


def test_weighted_keeps_deterministic_sites(trees: list[xr.DataTree]) -> None:
    found = weighted(trees[0])
    np.testing.assert_allclose(found["posterior"]["twice"], 2 * found["posterior"]["z"])
    assert found.attrs["k_hat"] == importance_diagnostics(trees[0])["k_hat"]


def test_resampled_draws_are_the_posteriors(trees: list[xr.DataTree]) -> None:
    found = [resampled(tree, seed=i)["posterior"]["z"] for i, tree in enumerate(trees)]
    assert_mean_equals([float(z.mean()) for z in found], POSTERIOR[0])
    assert_mean_equals([float(z.std()) for z in found], POSTERIOR[1])


def test_resampled_groups_stay_together(trees: list[xr.DataTree]) -> None:
    found = resampled(trees[0], 777)
    z = found["posterior"]["z"]
    assert z.shape == (1, 777)
    np.testing.assert_array_equal(found["posterior"]["twice"], 2 * z)
    expected = stats.norm.logpdf(X.numpy(), draws_of(found)[:, None])[None]
    np.testing.assert_allclose(found["log_likelihood"]["x"], expected)
    assert found["log_likelihood"]["x"].dims == ("chain", "draw", "patient")
    assert set(found["sample_stats"].data_vars) == {"log_p"}
    np.testing.assert_array_equal(found["observed_data"]["x"], X)
    assert found.attrs["distinct_draws"] == len(np.unique(z))


def test_each_draw_appears_as_often_as_its_weight_says(trees: list[xr.DataTree]) -> None:
    weights = weighted_shares(trees[0])
    z = draws_of(trees[0])
    values, counts = np.unique(draws_of(resampled(trees[0])), return_counts=True)
    times = dict(zip(values, counts, strict=True))
    found = np.array([times.get(value, 0) for value in z])
    assert (np.abs(found - weights * len(z)) < 2).all()


def draws_of(tree: xr.DataTree) -> np.ndarray:
    return tree["posterior"].to_dataset()["z"].values.ravel()


def weighted_shares(tree: xr.DataTree) -> np.ndarray:
    log_w = tree["sample_stats"].to_dataset()["log_weight"].values.ravel()
    smoothed, _ = array_stats.psislw(-log_w)
    return np.exp(smoothed)


def test_arviz_takes_resampled_draws(trees: list[xr.DataTree], tmp_path) -> None:
    found = resampled(trees[0])
    assert az.summary(found).loc["z", "mean"] is not None
    found.to_netcdf(tmp_path / "resampled.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "resampled.nc") as back:
        xr.testing.assert_identical(back["posterior"].to_dataset(), found["posterior"].to_dataset())


def test_loo_is_that_of_the_posterior(trees: list[xr.DataTree]) -> None:
    """p(x_i | x_-i) of the conjugate model; without the correction it is the guide's."""
    others = X.sum() - X
    exact = stats.norm.logpdf(X, others / len(X), math.sqrt(1 + 1 / len(X))).sum()
    found = [loo_approximate_posterior(tree) for tree in trees]
    assert_mean_equals([loo.elpd for loo in found], exact)
    assert all(loo.approx_posterior and not loo.warning for loo in found)
    assert found[0].elpd_i.dims == ("patient",)
    with pytest.raises(AssertionError):
        assert_mean_equals([az.loo(tree).elpd for tree in trees], exact)


def test_a_guide_that_covers_too_little_is_said_to() -> None:
    tree = from_guide(narrow, model, X, num_samples=5000)
    for repair in (resampled, weighted):
        with pytest.warns(UserWarning, match=r"k-hat is 0\.\d\d, above 0\.70"):
            repair(tree)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importance_diagnostics(tree)


def test_points_have_no_weights() -> None:
    point = AutoDelta(model)
    point(X)
    tree = from_guide(point, model, X, num_samples=100)
    for function in (importance_diagnostics, resampled, weighted, loo_approximate_posterior):
        with pytest.raises(ValueError, match="sets z to single values"):
            function(tree)


def test_errors_say_what_is_missing(trees: list[xr.DataTree]) -> None:
    draws = xr.DataTree.from_dict({"posterior": trees[0]["posterior"].to_dataset()})
    with pytest.raises(ValueError, match=r"no sample_stats\.log_weight"):
        importance_diagnostics(draws)
    with pytest.raises(ValueError, match="at least 25 draws, got 10"):
        importance_diagnostics(from_guide(guide, model, X, num_samples=10))
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        resampled(trees[0], 0)
    with pytest.raises(ValueError, match="probabilities must be from 0 to 1"):
        weighted(trees[0], (1.5,))
    with pytest.raises(ValueError, match=r"var_name='y': expected one of .*\['x'\]"):
        loo_approximate_posterior(trees[0], var_name="y")
    with pytest.raises(ValueError, match=r"\(chain, draw, \*cells\)"):
        k_hat(np.zeros(100))
    bare = trees[0].copy()
    del bare["log_likelihood"]
    with pytest.raises(ValueError, match="no group log_likelihood"):
        loo_approximate_posterior(bare)
