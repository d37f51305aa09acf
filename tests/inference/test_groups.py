"""Likelihoods, predictions, prior and data of a model, from MCMC, NUTS and guides alike."""

from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from models import eight_schools, radon
from pyro_elbo_lab import from_guide, from_predictive, from_pyro, nuts
from pyro_elbo_lab.inference.trees import groups as groups_module
from tests.support.tolerances import assert_mean_equals, critical_value

torch.manual_seed(0)
X = torch.randn(3, 4)
Y = torch.randn(3, 4)
CLASSES = ["a", "b", "c"]
QUICK: dict[str, Any] = {"num_warmup": 200, "num_samples": 250, "num_chains": 2, "progress": False}


def nested(x: Tensor, y: Tensor, scale: float = 1.0) -> None:
    """Pupils in classes, with a covariate."""
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("class", x.shape[0], dim=-2):
        level = pyro.sample("level", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("pupil", x.shape[1], dim=-1):
            mean = pyro.deterministic("mean", level + slope * x, event_dim=0)
            pyro.sample("y", dist.Normal(mean, scale), obs=y)


def by_pyro() -> Any:
    mcmc = MCMC(NUTS(nested), num_samples=250, warmup_steps=200, num_chains=1, disable_progbar=True)
    mcmc.run(X, Y)
    return from_pyro(mcmc, nested, X, Y, coords={"class": CLASSES})


def by_nuts() -> Any:
    return nuts(nested, X, Y, **QUICK)


def by_guide() -> Any:
    guide = AutoNormal(nested)
    guide(X, Y)
    return from_guide(guide, nested, X, Y, num_samples=500)


@pytest.fixture(scope="module", params=[by_pyro, by_nuts, by_guide])
def tree(request: pytest.FixtureRequest) -> Any:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with np.errstate(all="ignore"):
        return request.param()


def log_likelihood(tree: Any) -> np.ndarray:
    posterior = tree["posterior"]
    mean = (
        posterior["level"].values.reshape(*posterior["level"].shape[:2], 3, 1)
        + posterior["slope"].values[..., None, None] * X.numpy()
    )
    return -0.5 * (Y.numpy() - mean) ** 2 - 0.5 * np.log(2 * np.pi)


def test_groups(tree: Any) -> None:
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "log_likelihood",
        "posterior_predictive",
        "prior",
        "prior_predictive",
        "observed_data",
        "constant_data",
    }
    assert "notes" not in tree.attrs


def test_dimensions_have_the_plates_names(tree: Any) -> None:
    assert tree["posterior"]["level"].dims[:3] == ("chain", "draw", "class")
    assert tree["posterior"]["mean"].dims == ("chain", "draw", "class", "pupil")
    for group in ("log_likelihood", "posterior_predictive", "prior_predictive"):
        assert tree[group]["y"].dims == ("chain", "draw", "class", "pupil")
    assert tree["observed_data"]["y"].dims == ("class", "pupil")
    assert tree["constant_data"]["x"].shape == (3, 4)


def test_log_likelihood_is_that_of_the_draws(tree: Any) -> None:
    np.testing.assert_allclose(tree["log_likelihood"]["y"], log_likelihood(tree), rtol=1e-4)


def test_predictions_have_the_models_noise(tree: Any) -> None:
    residuals = tree["posterior_predictive"]["y"] - tree["posterior"]["mean"]
    values = residuals.values.reshape(-1, 12)
    assert_mean_equals(values, np.zeros(12))
    assert_mean_equals(values**2, np.ones(12))


def test_prior(tree: Any) -> None:
    values = tree["prior"]["slope"].values.ravel()
    assert len(values) == 500
    assert_mean_equals(values**2, 1.0)
    assert set(tree["prior"]) == {"slope", "level", "mean"}


def test_arviz_works(tree: Any) -> None:
    assert "level" in " ".join(az.summary(tree).index)
    assert np.isfinite(az.loo(tree).elpd)
    az.plot_forest(tree, var_names=["level"])
    az.plot_pair(tree, var_names=["slope", "level"])
    az.plot_ppc_dist(tree)


def test_models_can_be_compared() -> None:
    trees = {
        name: nuts(nested, X, Y, scale=scale, **QUICK)
        for name, scale in {"right": 1.0, "too wide": 9.0}.items()
    }
    assert list(az.compare(trees).index) == ["right", "too wide"]


@pytest.mark.parametrize("form", ["netcdf", "zarr"])
def test_round_trip(tree: Any, form: str, tmp_path: Path) -> None:
    path = tmp_path / "tree"
    if form == "netcdf":
        tree.to_netcdf(path, engine="h5netcdf")
        loaded = xr.open_datatree(path, engine="h5netcdf")
    else:
        tree.to_zarr(path)
        loaded = xr.open_datatree(path, engine="zarr")
    loaded = loaded.load()
    loaded.close()
    xr.testing.assert_identical(loaded, tree)
    for node in tree.subtree:
        for name, variable in node.data_vars.items():
            assert loaded[f"{node.path}/{name}"].dtype == variable.dtype


def test_labels() -> None:
    pyro.set_rng_seed(0)
    tree = by_pyro()
    assert list(tree["posterior"]["class"].values) == CLASSES
    assert float(tree["posterior"]["level"].sel({"class": "b"}).mean()) != 0
    guide = AutoNormal(nested)
    guide(X, Y)
    renamed = from_guide(guide, nested, X, Y, dims={"mean": ("row", "column")}, num_samples=5)
    assert renamed["posterior"]["mean"].dims == ("chain", "draw", "row", "column")


def test_pyros_sample_stats() -> None:
    pyro.set_rng_seed(0)
    tree = by_pyro()
    assert tree["sample_stats"]["diverging"].dtype == bool
    assert (tree["sample_stats"]["step_size"] > 0).all()
    assert 0.5 < tree.attrs["acceptance_rate"] <= 1


def test_without_the_model_there_are_draws() -> None:
    mcmc = MCMC(NUTS(nested), num_samples=20, warmup_steps=20, disable_progbar=True)
    mcmc.run(X, Y)
    tree = from_pyro(mcmc)
    assert set(tree.children) == {"posterior", "sample_stats"}
    assert tree["posterior"]["slope"].shape == (1, 20)


def test_another_model_is_refused() -> None:
    mcmc = MCMC(NUTS(nested), num_samples=20, warmup_steps=20, disable_progbar=True)
    mcmc.run(X, Y)
    with pytest.raises(ValueError, match=r"'level' of shape \(3, 1\).*a site of shape \(2, 1\)"):
        from_pyro(mcmc, nested, X[:2], Y[:2])
    with pytest.raises(ValueError, match="no such site"):
        from_pyro(mcmc, lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))


def test_masks_and_scales() -> None:
    """Scale does not touch the likelihood of an observation; a mask makes it 0."""
    y = torch.tensor([0.5, 1.0, -2.0])

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        mask = torch.tensor([True, False, True])
        with pyro.plate("row", 3), poutine.scale(scale=7.0), poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    guide = AutoNormal(model)
    guide(y)
    tree: Any = from_guide(guide, model, y, num_samples=20)
    mu = tree["posterior"]["mu"].values[..., None]
    expected = -0.5 * (y.numpy() - mu) ** 2 - 0.5 * np.log(2 * np.pi)
    expected[..., 1] = 0
    np.testing.assert_allclose(tree["log_likelihood"]["y"], expected, rtol=1e-4)
    assert "masked observations of ['y'] have likelihood 1" in tree.attrs["notes"]


@pytest.mark.parametrize("inference", ["guide", "nuts"])
def test_reparameterized_latents_are_computed_and_no_data(inference: str) -> None:
    y, scale = eight_schools.data()
    model = poutine.reparam(by_schools, {"theta": LocScaleReparam(0.0)})
    if inference == "nuts":
        tree: Any = nuts(model, y, scale, **QUICK)
    else:
        guide = AutoNormal(model)
        guide(y, scale)
        tree = from_guide(guide, model, y, scale, num_samples=50)
    assert list(tree["observed_data"]) == list(tree["log_likelihood"]) == ["y"]
    for group in ("posterior", "prior"):
        draws = tree[group]
        assert draws["theta"].dims == ("chain", "draw", "school")
        expected = draws["mu"] + draws["tau"] * draws["theta_decentered"]
        np.testing.assert_allclose(draws["theta"], expected, rtol=1e-4, atol=1e-4)


def by_schools(y: Tensor, scale: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, scale), obs=y)


def test_event_dimensions_are_summed() -> None:
    y = torch.randn(4, 2)

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("row", 4):
            pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y)

    guide = AutoNormal(model)
    guide(y)
    tree = from_guide(guide, model, y, num_samples=20)
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "row")
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "row", "y_dim_0")


@pytest.mark.parametrize(
    "make",
    [
        AutoNormal,
        AutoDiagonalNormal,
        AutoMultivariateNormal,
        AutoLowRankMultivariateNormal,
        AutoIAFNormal,
        AutoLaplaceApproximation,
        AutoDelta,
    ],
)
def test_every_autoguide(make: Any) -> None:
    data = eight_schools.data()
    guide = make(eight_schools.model)
    guide(*data)
    tree = from_guide(guide, eight_schools.model, *data, num_samples=20)
    assert set(tree["posterior"]) == {"mu", "tau", "z", "theta"}
    assert tree["log_likelihood"]["y"].shape == (1, 20, 8)
    is_point = make in (AutoDelta, AutoLaplaceApproximation)  # until it is asked for its scales
    assert ("points" in tree.attrs) == is_point


def test_an_amortized_guide() -> None:
    y = torch.randn(6)

    def model(y: Tensor) -> None:
        with pyro.plate("row", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        weight = pyro.param("weight", torch.tensor(0.4))
        with pyro.plate("row", len(y)):
            pyro.sample("z", dist.Normal(weight * y, 0.8))

    tree = from_guide(guide, model, y, num_samples=40)
    stats = tree["sample_stats"]
    assert stats["cell_log_weight"].dims == ("chain", "draw", "row")
    np.testing.assert_allclose(
        stats["cell_log_weight"].sum("row"), stats["log_weight"], rtol=1e-4, atol=1e-4
    )


def test_dtypes_are_kept() -> None:
    y = torch.randn(4, dtype=torch.float64)

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 1.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    for dtype in (torch.float32, torch.float64):
        guide = AutoNormal(model)
        guide(y.to(dtype))
        tree = from_guide(guide, model, y.to(dtype), num_samples=10)
        for group in ("posterior", "log_likelihood", "posterior_predictive", "observed_data"):
            for variable in tree[group].data_vars.values():
                assert variable.dtype == str(dtype).removeprefix("torch."), group
        pyro.clear_param_store()


def test_what_is_summed_out_leaves_no_likelihood() -> None:
    y = torch.tensor([0.0, 3.0])

    @config_enumerate
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", 2):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(mu + 3 * k, 1.0), obs=y)

    tree = nuts(model, y, **QUICK)
    assert "log_likelihood" not in tree.children
    assert "['k'], which are summed out" in tree.attrs["notes"]


def test_flat_priors_are_not_drawn_from() -> None:
    y = torch.tensor([0.0, 3.0])

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 1.0).mask(False))
        with pyro.plate("row", 2):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    tree = nuts(model, y, **QUICK)
    assert "prior" not in tree.children and "log_likelihood" in tree.children
    assert "['mu'] is improper" in tree.attrs["notes"]


def test_what_would_be_too_large_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "MOST_VALUES", 5000)
    tree = nuts(nested, X, Y, **QUICK)
    assert "log_likelihood" not in tree.children and "prior" in tree.children
    assert "no log_likelihood: it would hold 6000 numbers" in tree.attrs["notes"]


def test_a_model_that_fails_loses_no_draws() -> None:
    """It cannot be run without its observations."""

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)):
            seen = pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        if seen is not y:
            raise RuntimeError("no observations")

    tree = nuts(model, torch.zeros(3), **QUICK)
    assert tree["posterior"]["mu"].shape == (2, 250)
    assert "log_likelihood" in tree.children
    assert "no posterior_predictive: RuntimeError: no observations" in tree.attrs["notes"]


def test_models_that_index_from_the_left() -> None:
    """They run draw by draw, with the same numbers."""
    y = torch.randn(3)

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.deterministic("first", z[0])
        pyro.sample("y", dist.Normal(z[0] + z[2], 1.0).expand([3]).to_event(1), obs=y)

    guide = AutoNormal(model)
    guide(y)
    tree: Any = from_guide(guide, model, y, num_samples=30)
    z = tree["posterior"]["z"].values
    expected = dist.Normal(torch.tensor(z[..., :1] + z[..., 2:]), 1.0).log_prob(y).sum(-1)
    np.testing.assert_allclose(tree["log_likelihood"]["y"], expected, rtol=1e-4)
    np.testing.assert_array_equal(tree["posterior"]["first"], z[..., 0])


def test_predictive() -> None:
    def model(x: Tensor, y: Tensor | None = None) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    x, y = torch.randn(5), torch.randn(5)
    guide = AutoNormal(model)
    guide(x, y)
    for parallel in (False, True):
        samples = Predictive(model, guide=guide, num_samples=30, parallel=parallel)(x)
        tree = from_predictive(samples, model, x, y)
        assert tree["posterior"]["slope"].shape == (1, 30)
        assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "row")
        np.testing.assert_array_equal(tree["observed_data"]["y"], y)
    assert list(from_predictive(samples).children) == ["posterior_predictive"]
    with pytest.raises(ValueError, match="expected one of"):
        from_predictive(samples, group="predictions")
    with pytest.raises(ValueError, match="different numbers"):
        from_predictive({"a": torch.zeros(3), "b": torch.zeros(4)})


def test_counties_of_radon() -> None:
    data = radon.data()
    guide = AutoNormal(radon.model)
    guide(*data)
    tree = from_guide(guide, radon.model, *data, num_samples=100)
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "house")
    assert set(tree["constant_data"]) == {"county", "floor"}


def test_a_deterministic_site_that_others_read_is_computed_in_predictions() -> None:
    """Pyro marks its value as observed, and would draw it anew, in a wrong shape."""

    def model(x: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        twice = pyro.deterministic("twice", 2 * z)
        with pyro.plate("patient", len(x)):
            pyro.sample("x", dist.Normal(twice, 0.01), obs=x)

    tree = from_guide(AutoNormal(model), model, torch.zeros(3), num_samples=50)
    assert "notes" not in tree.attrs
    posterior, prior = tree["posterior"].to_dataset(), tree["prior"].to_dataset()
    np.testing.assert_array_equal(prior["twice"], 2 * prior["z"])
    predicted = tree["posterior_predictive"].to_dataset()["x"]
    assert float(abs(predicted - posterior["twice"]).max()) < 0.01 * critical_value(50 * 3)
