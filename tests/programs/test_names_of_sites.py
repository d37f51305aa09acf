"""Sites of any name: their draws can be kept, compared and written, or an error says why not."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

from pyro_elbo_lab import StandardELBO, compare, evidence, fit, from_guide, nuts, sbc, write_report
from pyro_elbo_lab.inference.storage.netcdf import write_netcdf
from pyro_elbo_lab.inference.trees.datatree import to_datatree, variable
from tests.support.tolerances import assert_mean_equals

X = torch.tensor([1.0, 2.0, 3.0])
NAMES = {"scope.z", "w", "a.b.double"}


def model(x: Tensor) -> None:
    z = pyro.sample("scope/z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows/i", len(x)):
        w = pyro.sample("w", dist.Normal(z, 1.0))
        pyro.deterministic("a/b/double", 2 * w)
        pyro.sample("x/obs", dist.Normal(w, 1.0), obs=x)


@pytest.fixture(scope="module")
def reference() -> xr.DataTree:
    return nuts(model, X, num_chains=2, num_warmup=200, num_samples=500, progress=False)


@pytest.fixture(autouse=True)
def empty_store() -> Iterator[None]:
    with pyro.get_param_store().scope():
        yield


def test_nuts(reference: xr.DataTree, tmp_path: Path) -> None:
    assert set(reference["posterior"].data_vars) == NAMES
    assert reference["posterior"]["w"].dims == ("chain", "draw", "rows.i")
    write_netcdf(reference, tmp_path / "r.nc")
    with xr.open_datatree(tmp_path / "r.nc", engine="h5netcdf") as found:
        assert set(found["posterior"].data_vars) == NAMES
        assert set(found["observed_data"].data_vars) == {"x.obs"}


@pytest.mark.parametrize("guide", [AutoNormal, AutoMultivariateNormal])
def test_a_fit_is_compared_and_bounded(guide: type, reference: xr.DataTree, tmp_path: Path) -> None:
    done = fit(model, guide(model), X, objective=StandardELBO(), num_steps=30, progress=False)
    tree = done.posterior(500)
    comparison = compare({"q/1": tree}, reference)
    assert {"scope.z", "a.b.double[0]"} <= set(comparison.table.index.get_level_values(1))
    write_report(comparison, tmp_path / "report")
    assert (tmp_path / "report" / "q-1.nc").exists()
    bounds = evidence(model, done.guide, X, reference=reference, num_samples=500)
    assert "EUBO" in set(bounds.table["name"])
    arrays = {name: x.values for name, x in reference["posterior"].data_vars.items()}
    assert "scope/z" not in arrays and compare({"q": tree}, arrays).findings


def test_draws_by_the_names_of_sites_are_references_too() -> None:
    draws = {"scope/z": np.zeros((1, 100)) + np.arange(100), "w": np.ones((1, 100, 3))}
    found = compare({"q": {**draws, "w": draws["w"] + np.arange(100)[:, None]}}, draws)
    assert found.table.index.get_level_values(1).tolist() == ["scope.z"]


def test_calibration(tmp_path: Path) -> None:
    def prior(model: object, x: Tensor) -> dict[str, Tensor]:
        z = torch.randn(50)
        return {"scope/z": z, "w": z[:, None] + torch.randn(50, 3)}

    found = sbc(model, prior, X, num_simulations=200, num_draws=50, progress=False)
    assert set(found.ranks.data_vars) == {"scope.z", "w"}
    assert_mean_equals(found.ranks["scope.z"].values, 25)
    write_netcdf(found.ranks, tmp_path / "ranks.nc")
    assert set(xr.load_dataset(tmp_path / "ranks.nc", engine="h5netcdf")) == {"scope.z", "w"}

    def trained(model: object, x: Tensor) -> object:
        guide = AutoNormal(model)
        return fit(model, guide, x, objective=StandardELBO(), num_steps=2, progress=False)  # type: ignore[arg-type]

    ranks = sbc(model, trained, X, num_simulations=10, num_draws=50, progress=False).ranks
    assert set(ranks.data_vars) == NAMES


@pytest.mark.parametrize("name", ["", ".", "..", "chain", "draw", "a\0b", "\ud800"])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be a variable of a DataTree.*another name"):
        variable(name)

    def program() -> None:
        pyro.sample(name, dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="cannot be a variable"):
        from_guide(program, program, num_samples=3)


@pytest.mark.parametrize("name", [" a", "a ", "\N{GREEK SMALL LETTER MU}", "a\nb", "a..", "a\\b"])
def test_other_names_stay_as_they_are(name: str, tmp_path: Path) -> None:
    tree = to_datatree({name: np.zeros((1, 3, 2))}, {name: (f"{name}!",)})
    write_netcdf(tree, tmp_path / "t.nc")
    with xr.open_datatree(tmp_path / "t.nc", engine="h5netcdf") as found:
        assert list(found["posterior"].data_vars) == [name]
        assert found["posterior"][name].dims[2:] == (f"{name}!",)


def test_names_that_would_be_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one of them 'a\.b', would both be the variable 'a\.b'"):
        to_datatree({"a/b": np.zeros((1, 3)), "a.b": np.zeros((1, 3))}, {})
