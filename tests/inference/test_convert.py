"""Names of dimensions, and DataTrees that survive a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from pyro_elbo_lab.inference.trees.datatree import to_datatree
from pyro_elbo_lab.programs.dims import site_dims


def normal(*batch: int) -> dist.Normal:
    return dist.Normal(torch.zeros(batch), 1.0)


def plates_and_events() -> None:
    pyro.sample("scalar", normal())
    pyro.sample("vector", normal(3).to_event(1))
    with pyro.plate("row", 4, dim=-2):
        pyro.sample("per_row", normal())
        with pyro.plate("column", 5, dim=-1):
            pyro.sample("cell", normal())
            pyro.sample("matrix_per_cell", normal(2, 6).to_event(2))


def test_plates_give_their_names() -> None:
    assert site_dims(plates_and_events) == {
        "scalar": (),
        "vector": ("vector_dim_0",),
        "per_row": ("row", "per_row_dim_0"),
        "cell": ("row", "column"),
        "matrix_per_cell": ("row", "column", "matrix_per_cell_dim_0", "matrix_per_cell_dim_1"),
    }


def test_a_batch_without_plate_has_no_name() -> None:
    def model() -> None:
        with pyro.plate("group", 4, dim=-1):
            pyro.sample("z", normal(3, 1))

    assert site_dims(model) == {"z": ("z_dim_0", "group")}


def deterministic(shape: tuple[int, ...], event_dim: int | None) -> Callable[[], None]:
    def model() -> None:
        with pyro.plate("school", 8):
            pyro.deterministic("theta", torch.zeros(shape), event_dim=event_dim)

    return model


@pytest.mark.parametrize(
    "shape, event_dim, expected",
    [
        ((8,), 0, ("school",)),
        ((8, 3), 1, ("school", "theta_dim_0")),
        ((8, 8), 1, ("school", "theta_dim_0")),
        ((8,), None, ("school",)),
        ((8, 3), None, ("school", "theta_dim_0")),
        ((8, 8), None, ("theta_dim_0", "theta_dim_1")),  # either could be the plate's
        ((3,), None, ("theta_dim_0",)),
        ((), None, ()),
    ],
)
def test_deterministic_sites(
    shape: tuple[int, ...], event_dim: int | None, expected: tuple[str, ...]
) -> None:
    assert site_dims(deterministic(shape, event_dim)) == {"theta": expected}


def test_observed_sites_are_named_and_factors_and_plates_are_not() -> None:
    def model(y: torch.Tensor, *, weight: float) -> None:
        pyro.factor("penalty", torch.tensor(weight))
        pyro.param("location", torch.zeros(()))
        with pyro.plate("data", len(y), subsample_size=2) as index:
            pyro.sample("y", normal(), obs=y[index])

    assert site_dims(model, torch.zeros(5), weight=-1.0) == {"y": ("data",)}


def test_sequential_plates_add_no_dimension() -> None:
    def model() -> None:
        for i in pyro.plate("loop", 2):
            pyro.sample(f"z{i}", normal(3).to_event(1))

    assert site_dims(model) == {"z0": ("z0_dim_0",), "z1": ("z1_dim_0",)}


@pytest.mark.parametrize("plate", ["chain", "draw"])
def test_a_plate_named_like_a_sample_dimension_counts_as_unnamed(plate: str) -> None:
    def model() -> None:
        with pyro.plate("outer", 2, dim=-2), pyro.plate(plate, 3, dim=-1):
            pyro.sample("z", normal())

    dims = site_dims(model)
    assert dims == {"z": ("outer", "z_dim_0")}
    assert to_datatree({"z": np.zeros((1, 7, 2, 3))}, dims)["posterior"]["z"].shape == (1, 7, 2, 3)


def test_site_dims_leaves_the_random_state_alone() -> None:
    pyro.set_rng_seed(0)
    expected = torch.rand(()), np.random.rand()
    pyro.set_rng_seed(0)
    site_dims(plates_and_events)
    assert (torch.rand(()), np.random.rand()) == expected


def example_tree() -> xr.DataTree:
    rng = np.random.default_rng(0)
    return to_datatree(
        {"mu": rng.normal(size=(2, 5)), "theta": rng.normal(size=(2, 5, 3))},
        {"mu": (), "theta": ("school",), "y": ("school",), "unused": ("elsewhere",)},
        sample_stats={"diverging": rng.random((2, 5)) < 0.5, "n_steps": np.full((2, 5), 7)},
        observed_data={"y": np.array([1.0, 2.0, 3.0])},
        attrs={"sampler": "nutpie", "reliable": True, "ess": np.float32(0.5), "n": np.int64(3)},
    )


def test_datatree_has_arviz_layout() -> None:
    tree = example_tree()
    assert set(tree.children) == {"posterior", "sample_stats", "observed_data"}
    assert tree["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert tree["posterior"]["mu"].dims == ("chain", "draw")
    assert tree["sample_stats"]["diverging"].dims == ("chain", "draw")
    assert tree["observed_data"]["y"].dims == ("school",)
    assert tree.attrs == {"sampler": "nutpie", "reliable": 1, "ess": 0.5, "n": 3}


def test_sites_without_names_get_default_ones() -> None:
    tree = to_datatree({"w": np.zeros((1, 2, 4))}, {})
    assert tree["posterior"]["w"].dims == ("chain", "draw", "w_dim_0")
    assert set(tree.children) == {"posterior"}


def test_datatree_survives_netcdf(tmp_path: Path) -> None:
    tree = example_tree()
    tree.to_netcdf(tmp_path / "tree.nc")
    with xr.open_datatree(tmp_path / "tree.nc") as loaded:
        xr.testing.assert_identical(loaded.load(), tree)
        for group in tree.children:
            for name, variable in tree[group].data_vars.items():
                assert loaded[group][str(name)].dtype == variable.dtype


@pytest.mark.parametrize(
    "keywords, complaint",
    [
        ({"posterior": {"z": np.zeros(5)}}, r"'z' has shape \(5,\), expected \(chain, draw"),
        (
            {"posterior": {"z": np.zeros((2, 5)), "w": np.zeros((2, 6))}},
            r"'w' has shape \(2, 6\).*\(2, 5\) as in 'z'",
        ),
        (
            {"posterior": {"z": np.zeros((2, 5, 3))}, "dims": {"z": ("a", "b")}},
            r"'z' has 1 dimensions of shape \(3,\).*\('a', 'b'\)",
        ),
        (
            {"posterior": {"z": np.zeros((2, 5))}, "sample_stats": {"lp": np.zeros((2, 4))}},
            r"sample_stats\['lp'\] has shape \(2, 4\)",
        ),
        (
            {"posterior": {"z": np.zeros((2, 5))}, "sample_stats": {"lp": np.zeros(2)}},
            r"sample_stats\['lp'\] has shape \(2,\)",
        ),
        (
            {
                "posterior": {"z": np.zeros((2, 5, 3))},
                "dims": {"z": ("a",)},
                "coords": {"a": ["x", "y"]},
            },
            r"coords\['a'\] has 2 labels, but dimension 'a' has size 3",
        ),
    ],
)
def test_wrong_shapes_are_named(keywords: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        to_datatree(**{"dims": {}, **keywords})


def test_attributes_that_a_file_cannot_hold_are_refused() -> None:
    with pytest.raises(TypeError, match="attribute 'seeds' is a list"):
        to_datatree({"z": np.zeros((1, 2))}, {}, attrs={"seeds": [1, 2]})
