"""Every model file runs through `elbo-lab compare`, and agrees with what is known of it."""

import importlib
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from arviz_stats import mcse
from pyro import poutine
from sklearn.datasets import load_digits
from torch import Tensor

from pyro_elbo_lab.cli import main
from pyro_elbo_lab.compilation.capture.guard import CaptureError
from pyro_elbo_lab.inference.nuts import nuts
from tests.support.tolerances import critical_value

FOLDER = Path(__file__).parents[2] / "models"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
GUIDES = {"sigmoid_belief_net": "network", "vae": "encoder"}
BEYOND_NUTS = ["banana", "funnel"]
MANY_IMAGES = ["vae"]
SLOW_TO_COMPILE = ["hmm"]

FIT = ["--steps", "20", "--num-samples", "200"]
A_FEW = ["--chains", "2", "--warmup", "40", "--draws", "60"]
ENOUGH = ["--chains", "2", "--warmup", "300", "--draws", "1000"]


def parameters(file: ModuleType) -> set[str]:
    """Names of all scalars of the continuous latents and what is deterministic, as compare has
    them; nothing deterministic where states are summed out."""
    nodes = poutine.trace(file.model).get_trace(*file.data()).nodes
    drawn = [n for n in nodes.values() if n["type"] == "sample" and n["value"].is_floating_point()]
    latent = [n for n in drawn if not n["is_observed"] or n["infer"].get("_deterministic")]
    names = set()
    for node in latent:
        for index in np.ndindex(tuple(node["value"].shape)):
            names.add(f"{node['name']}[{', '.join(map(str, index))}]" if index else node["name"])
    return names


@pytest.mark.parametrize("name", NAMES)
def test_compare_runs_every_model_file(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name in SLOW_TO_COMPILE:
        monkeypatch.setattr(nuts, "compile_density", no_compiler)
    if name in MANY_IMAGES:
        digits = load_digits().data[:20]
        monkeypatch.setattr("sklearn.datasets.load_digits", lambda: SimpleNamespace(data=digits))
    file = importlib.import_module(f"models.{name}")
    guide = GUIDES.get(name, "normal")
    known = file.exact(*file.data()) if hasattr(file, "exact") else {}
    options = ["--guide", guide, *FIT, *(ENOUGH if known else A_FEW), "--out", str(tmp_path)]
    assert main.main(["compare", str(FOLDER / f"{name}.py"), *options]) == 0
    assert re.search(f"^{guide}, standard: [A-Z].*", capsys.readouterr().out, re.MULTILINE)
    check_report(tmp_path, file)
    if known:
        check_evidence(tmp_path, known["log_evidence"])
    if known and name not in BEYOND_NUTS:
        check_reference(tmp_path, known["mean"])


def no_compiler(*args: object) -> None:
    raise CaptureError("this test would wait for the compiler")


def check_report(folder: Path, file: ModuleType) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert file.__name__.removeprefix("models.") in page
    assert all(f'id="{section}"' in page for section in ("training", "evidence"))
    table = pd.read_csv(folder / "table.csv")
    assert table["parameter"].is_unique and set(table["parameter"]) <= parameters(file)
    left_out = parameters(file) - set(table["parameter"])
    assert all(draws(folder, name).std() == 0 for name in left_out)
    assert np.isfinite(table["mean_error"]).all()


def draws(folder: Path, parameter: str) -> np.ndarray:
    """Of the reference."""
    site, _, index = parameter.rstrip("]").partition("[")
    element = tuple(map(int, index.split(", "))) if index else ()
    with xr.open_datatree(folder / "reference.nc", engine="h5netcdf") as tree:
        return np.moveaxis(tree["posterior"].dataset[site].values, (0, 1), (-2, -1))[element]


def check_evidence(folder: Path, log_evidence: float) -> None:
    """No bound that is to be believed is on the wrong side."""
    bounds = pd.read_csv(folder / "evidence.csv")
    bounds = bounds[bounds["believable"] & bounds["side"].isin(["lower", "upper"])]
    sign = bounds["side"].map({"lower": 1.0, "upper": -1.0})
    excess = sign * (bounds["value"] - log_evidence)
    assert len(bounds) and (excess < critical_value(len(bounds)) * bounds["se"]).all()


def check_reference(folder: Path, mean: dict[str, Tensor]) -> None:
    """The means of NUTS are those known, up to their Monte Carlo errors."""
    with xr.open_datatree(folder / "reference.nc", engine="h5netcdf") as tree:
        error = mcse(tree, method="mean").dataset
        draws = tree["posterior"].dataset.mean(("chain", "draw"))
        for site, expected in mean.items():
            z = (draws[site].values - expected.numpy()) / error[site].values
            assert (abs(z) < critical_value(sum(value.numel() for value in mean.values()))).all(), (
                site
            )
