"""Draws of posteriordb, from a miniature of its folders that the tests write."""

import builtins
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from pyro_elbo_lab import compare, posteriordb

NAMES = ["mu", "theta[1]", "theta[2]", "L[1,1]", "L[2,1]", "L[1,2]", "L[2,2]", "L[1,3]", "L[2,3]"]
NAME = "data-model"


@pytest.fixture
def draws() -> np.ndarray:
    """(chain, draw, scalar)"""
    return np.random.default_rng(0).normal(size=(3, 200, len(NAMES)))


def chains(draws: np.ndarray, names: list[str] = NAMES) -> list[dict[str, list[float]]]:
    return [{name: chain[:, i].tolist() for i, name in enumerate(names)} for chain in draws]


def database(folder: Path, content: Any, reference: str | None = NAME, **info: Any) -> Path:
    """A database of one posterior; its draws are called `reference`, its folder is returned."""
    pytest.importorskip("posteriordb", reason="the package posteriordb is not installed")
    posterior = {"model_name": "model", "data_name": "data", "reference_posterior_name": reference}
    files = {
        f"posteriors/{NAME}.json": {"name": NAME, **posterior},
        "models/info/model.info.json": {"name": "model", "model_implementations": {}},
        "data/info/data.info.json": {"name": "data", "data_file": "data/data/data.json"},
        f"reference_posteriors/draws/info/{reference}.info.json": {"name": reference, **info},
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    archive = folder / f"reference_posteriors/draws/draws/{reference}.json.zip"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"{reference}.json", json.dumps(content))
    return folder


def test_vectors_and_chains_are_those_of_the_database(tmp_path: Path, draws: np.ndarray) -> None:
    tree = posteriordb(NAME, database(tmp_path, chains(draws)))
    posterior = tree["posterior"].to_dataset()
    assert set(posterior.data_vars) == {"mu", "theta", "L"}
    assert {n: v.dims[:2] for n, v in posterior.items()} == {
        n: ("chain", "draw") for n in posterior
    }
    np.testing.assert_array_equal(posterior["mu"], draws[..., 0])
    np.testing.assert_array_equal(posterior["theta"], draws[..., 1:3])
    assert posterior["L"].shape == (3, 200, 2, 3)
    for i, name in enumerate(NAMES[3:], start=3):
        row, column = (int(part) - 1 for part in name[2:-1].split(","))
        np.testing.assert_array_equal(posterior["L"][..., row, column], draws[..., i])


def test_order_of_the_entries_does_not_matter(tmp_path: Path, draws: np.ndarray) -> None:
    """theta[10] comes before theta[2] in the alphabet, and in some files."""
    names = sorted(f"theta[{i}]" for i in range(1, 13))
    values = np.random.default_rng(1).normal(size=(2, 30, 12))
    tree = posteriordb(NAME, database(tmp_path, chains(values, names)))
    for i, name in enumerate(names):
        entry = tree["posterior"].dataset["theta"][..., int(name[6:-1]) - 1]
        np.testing.assert_array_equal(entry, values[..., i])


def test_attributes_say_where_draws_are_from(tmp_path: Path, draws: np.ndarray) -> None:
    """Their name is that of the draws, which another posterior may share."""
    folder = database(
        tmp_path,
        chains(draws),
        reference="data-other_model",
        inference={"method": "stan_sampling"},
        checks_made={"r_hat_below_1_01": True, "ess_within_bounds": True},
    )
    attrs = posteriordb(NAME, str(folder)).attrs
    assert attrs["source"] == f"posteriordb, reference draws 'data-other_model', from {folder}"
    assert attrs["sampler"] == "stan_sampling"
    assert attrs["reliable"] == 1
    assert attrs["reliability"] == (
        "reliable: they passed posteriordb's own checks (r_hat_below_1_01, ess_within_bounds)."
    )


def test_draws_that_failed_a_check_are_marked(tmp_path: Path, draws: np.ndarray) -> None:
    checks = {"r_hat_below_1_01": False, "ess_within_bounds": True}
    attrs = posteriordb(NAME, database(tmp_path, chains(draws), checks_made=checks)).attrs
    assert attrs["reliable"] == 0
    assert attrs["reliability"].endswith("own checks failed: r_hat_below_1_01.")


def test_the_tree_is_a_reference_for_compare(tmp_path: Path, draws: np.ndarray) -> None:
    """Dimensions of other names are matched by position; the tree can be written."""
    reference = posteriordb(NAME, database(tmp_path, chains(draws)))
    theta = xr.Dataset({"theta": (("chain", "draw", "school"), draws[::-1, :, 1:3] + [0.0, 2.0])})
    comparison = compare({"shifted": xr.DataTree.from_dict({"posterior": theta})}, reference)
    errors = comparison.table["mean_error"].to_numpy()
    assert abs(errors[0]) < 1e-12 and abs(errors[1] - 2.0) < 0.1
    assert comparison.reference_note == reference.attrs["reliability"]
    reference.to_netcdf(tmp_path / "reference.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "reference.nc", engine="h5netcdf") as loaded:
        xr.testing.assert_identical(loaded.load(), reference)


def test_without_the_package_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "posteriordb":
            raise ModuleNotFoundError("No module named 'posteriordb'")
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r'pip install "pyro_elbo_lab\[posteriordb\]"'):
        posteriordb(NAME, tmp_path)


def test_a_folder_that_is_no_database(tmp_path: Path, draws: np.ndarray) -> None:
    folder = database(tmp_path / "posterior_database", chains(draws))
    with pytest.raises(FileNotFoundError, match=r"no folder 'posteriors'.*'posterior_database'"):
        posteriordb(NAME, folder.parent)


def test_an_unknown_posterior(tmp_path: Path, draws: np.ndarray) -> None:
    folder = database(tmp_path, chains(draws))
    with pytest.raises(ValueError, match=r"no 'data-modle' among its 1 posteriors; close.*-model"):
        posteriordb("data-modle", folder)


def test_a_posterior_without_draws(tmp_path: Path) -> None:
    folder = database(tmp_path, [], reference=None)
    with pytest.raises(ValueError, match="no reference draws of 'data-model'"):
        posteriordb(NAME, folder)


@pytest.mark.parametrize(
    "content, message",
    [
        ([], "chains of the same parameters and lengths"),
        ([{"mu": [1.0, 2.0]}, {"mu": [1.0]}], "chains of the same parameters and lengths"),
        ([{"mu": [1.0], "x": [1.0]}, {"mu": [1.0]}], "chains of the same parameters and lengths"),
        ([{"x[1]": [1.0], "x[3]": [1.0]}], r"entries of 'x' of 'data-model' do not fill an array"),
        ([{"x[0]": [1.0], "x[1]": [1.0]}], r"entries of 'x' of 'data-model' do not fill an array"),
        ([{"x": [1.0], "x[1]": [1.0]}], r"entries of 'x' of 'data-model' do not fill an array"),
        ([{"x[1]": [1.0], "x[1,1]": [1.0]}], r"entries of 'x' of 'data-model' do not fill"),
    ],
)
def test_files_that_make_no_arrays(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        posteriordb(NAME, database(tmp_path, content))
