"""Simulation-based calibration: right for the exact posterior, and wrong fits found out."""

import itertools
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from arviz_base import from_dict
from joblib.parallel import ThreadingBackend
from matplotlib.colors import to_rgb
from matplotlib.patches import StepPatch
from pyro import poutine
from scipy import stats
from torch import Tensor

from pyro_elbo_lab import (
    Calibration,
    compare,
    plot_sbc,
    plot_vsbc,
    sbc,
    vsbc,
    write_report,
)
from pyro_elbo_lab.cli import main
from pyro_elbo_lab.programs.simulator import simulator
from pyro_elbo_lab.statistics.ranks import p_symmetric, pit, ranks, summarize
from tests.support.tolerances import FALSE_ALARM_RATE, assert_mean_equals, critical_value

X = torch.tensor(1.3)
VARIANCE = 1 / 3  # of the posterior of z, whose mean is 2 x / 3
N, L = 200, 100


def model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 0.5**0.5), obs=x)


def posterior(shift: float = 0.0, sd_ratio: float = 1.0) -> Callable[..., Any]:
    """Draws of the exact posterior, shifted by so many of its sds and scaled."""

    def fit_fn(model: Any, x: Tensor) -> dict[str, Tensor]:
        return {"z": 2 / 3 * x + VARIANCE**0.5 * (shift + sd_ratio * torch.randn(L))}

    return fit_fn


def run(fit_fn: Callable[..., Any], program: Any = model, *args: Any, **options: Any) -> Any:
    sizes = {"num_simulations": 20, "num_draws": L, "progress": False}
    return sbc(program, fit_fn, *(args or (X,)), **{**sizes, **options})


@pytest.mark.parametrize("ask", [sbc, vsbc])
def test_the_exact_posterior_is_calibrated(ask: Any) -> None:
    found = ask(model, posterior(), X, num_simulations=N, progress=False)
    assert (found.table[["p_uniform", "p_symmetric"]] > FALSE_ALARM_RATE).all(axis=None)
    assert found.ranks["z"].dims == ("simulation",) and found.ranks.sizes["simulation"] == N
    # Ranks are uniform on 0, ..., L.
    assert_mean_equals(found.ranks["z"].values, L / 2)
    assert_mean_equals(found.ranks["z"].values ** 2, L * (2 * L + 1) / 6)


WRONG = {
    "too narrow": (0.0, 0.5),
    "too wide": (0.0, 2.0),
    "shifted up": (1.0, 1.0),
    "shifted down": (-1.0, 1.0),
}


@pytest.mark.parametrize("trouble", WRONG)
def test_a_wrong_fit_is_found_out(trouble: str) -> None:
    found = run(posterior(*WRONG[trouble]), num_simulations=N)
    assert found.table["p_uniform"].item() < FALSE_ALARM_RATE
    assert found.table["finding"].item() == trouble
    assert not found.calibrated
    assert f"z is {trouble}" in str(found) and str(found).startswith("Not calibrated")


@pytest.mark.parametrize("trouble", WRONG)
def test_symmetry_sees_shifts_and_no_widths(trouble: str) -> None:
    found = vsbc(model, posterior(*WRONG[trouble]), X, num_simulations=N, progress=False)
    p = found.table["p_symmetric"].item()
    if "shifted" in trouble:
        assert p < FALSE_ALARM_RATE and found.table["finding"].item() == trouble
        assert f"z is {trouble}" in str(found) and str(found).startswith("Biased")
    else:
        assert p > FALSE_ALARM_RATE
        assert found.calibrated and not found.asking("uniform").calibrated


@pytest.mark.parametrize("shift, sd_ratio", [(0.0, 1.0), (0.7, 1.0), (0.0, 0.5), (-0.4, 2.0)])
def test_moments_of_the_ranks_have_closed_forms(shift: float, sd_ratio: float) -> None:
    """The truth is Z, a draw is d + r e: of two draws below Z, one has P(d + r e < Z) and both
    P(A < -d, B < -d) of a Gaussian pair with variances 1 + r^2 and covariance 1."""
    found = run(posterior(shift, sd_ratio), num_simulations=400)
    rank = found.ranks["z"].values
    scale = 1 + sd_ratio**2
    both = stats.multivariate_normal([0, 0], [[scale, 1], [1, scale]]).cdf([-shift, -shift])
    assert_mean_equals(rank / L, stats.norm.cdf(-shift / math.sqrt(scale)))
    assert_mean_equals(rank * (rank - 1) / (L * (L - 1)), both)


def test_normal_scores_tell_shift_and_sd_ratio() -> None:
    """With 10^4 draws a rank is nearly the Gaussian probability, and its score (Z - d) / r."""
    z = stats.norm.ppf((np.arange(400) + 0.5) / 400)
    for shift, sd_ratio in ((0.3, 0.8), (-0.5, 2.0)):
        rank = np.floor(10_001 * stats.norm.cdf((z - shift) / sd_ratio)).astype(int)
        found = summarize(rank, 10_000)
        assert abs(found.shift - shift) < 0.02 and abs(found.sd_ratio / sd_ratio - 1) < 0.02


def test_a_fit_far_off_is_not_called_too_wide() -> None:
    """That the truth is always below all draws says nothing of their width."""
    assert summarize(np.zeros(100, int), L).trouble == "shifted up"
    assert summarize(np.full(100, L), L).trouble == "shifted down"


def test_ranks_count_draws_below_and_break_ties_at_random() -> None:
    rng = np.random.default_rng(0)
    draws = np.array([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    found = np.array([ranks(draws, np.array([2.5, 0.0]), rng) for _ in range(2000)])
    assert (found[:, 0] == 2).all()
    share = found[:, 1, None] == np.arange(4)
    assert_mean_equals(share.astype(float), 0.25)
    u = pit(found[:, 1], 3)
    assert (np.floor(4 * u) == found[:, 1]).all()


def test_the_p_value_of_symmetry_is_exact() -> None:
    """Over all signs of ten values, p <= a is as frequent as a, for each a that p can take."""
    size = np.arange(1, 11) / 21
    signs = itertools.product([-1, 1], repeat=10)
    p = np.array([p_symmetric(0.5 + size * s) for s in signs])
    for a in np.unique(p):
        assert np.mean(p <= a) == pytest.approx(a, abs=1e-12)


def test_the_statistic_of_symmetry_is_that_of_kolmogorov_and_smirnov() -> None:
    rng = np.random.default_rng(0)
    samples = [rng.beta(a, 1.0, size=12) for a in rng.uniform(0.5, 2, size=40)]
    distance = [stats.ks_2samp(u, 1 - u).statistic for u in samples]
    p = [p_symmetric(u) for u in samples]
    assert len(np.unique(np.round(distance, 9))) > 3
    order = np.argsort(distance, kind="stable")
    assert (np.diff(np.array(p)[order]) <= 1e-12).all()  # one decreases in the other
    assert len(np.unique(np.round(p, 9))) == len(np.unique(np.round(distance, 9)))


def refuses_large(model: Any, x: Tensor) -> dict[str, Tensor]:
    if x > 1:
        raise ArithmeticError("x is too large")
    return posterior()(model, x)


def test_failed_fits_are_recorded_and_left_out() -> None:
    with pytest.warns(UserWarning, match=r"of 20 simulations failed \(. x ArithmeticError: x is"):
        found = run(refuses_large)
    whole = run(posterior())
    assert 0 < len(found.failures) < 20
    assert set(found.failures.values()) == {"ArithmeticError: x is too large"}
    left = found.ranks["simulation"].values
    assert sorted([*left, *found.failures]) == list(range(20))
    assert (found.ranks["z"] == whole.ranks["z"].sel(simulation=left)).all()
    assert "ArithmeticError" in str(found) and "ArithmeticError" in found.ranks.attrs["notes"]


def test_draws_that_are_not_finite_are_failures() -> None:
    def fit_fn(model: Any, x: Tensor) -> dict[str, Tensor]:
        return {"z": torch.full((L,), math.nan) if x > 1 else torch.randn(L)}

    with pytest.warns(UserWarning, match="draws of 'z' are not finite"):
        assert run(fit_fn).failures


def test_nothing_left_is_an_error() -> None:
    def fit_fn(model: Any, x: Tensor) -> None:
        raise ArithmeticError("no")

    with pytest.raises(RuntimeError, match=r"20 of 20 .* failed \(20 x ArithmeticError: no"):
        run(fit_fn)


def test_processes_give_what_one_does() -> None:
    """Programs that no process can import, and torch's default dtype, reach the others."""
    torch.set_default_dtype(torch.float64)
    try:
        alone = run(posterior(), model, X.double(), n_jobs=1)
        together = run(posterior(), model, X.double(), n_jobs=2)
    finally:
        torch.set_default_dtype(torch.float32)
    xr.testing.assert_identical(alone.ranks, together.ranks)
    assert not run(posterior(), seed=1).ranks.equals(alone.ranks)


WORKERS = """
import os, sys, time, torch, pyro, pyro.distributions as dist
from pyro_elbo_lab import sbc

def model(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

def endless(model, x):
    open(f"{sys.argv[1]}/{os.getpid()}", "w").close()
    time.sleep(1000)

sbc(model, endless, torch.tensor(1.0), num_simulations=20, n_jobs=2, progress=False)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_parent_that_is_killed(number: int, tmp_path: Path) -> None:
    code = WORKERS.replace("sys.argv[1]", repr(str(tmp_path)))
    script = tmp_path.with_suffix(".py")
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    workers = until(lambda: [int(path.name) for path in tmp_path.iterdir()])
    parent.send_signal(number)
    assert parent.wait(60) == -number
    assert until(lambda: not any(map(is_alive, workers)))
    left = until(lambda: [int(path.name) for path in tmp_path.iterdir()])
    assert until(lambda: not any(map(is_alive, left)))  # one that was about to begin


def until(found: Callable[[], Any]) -> Any:
    """What a function returns as soon as it is true; None after five minutes."""
    for _ in range(3000):
        if result := found():
            return result
        time.sleep(0.1)
    return None


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended may still await its parent."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_threads_of_a_backend_do_not_share_random_numbers() -> None:
    with joblib.parallel_config(backend="threading", n_jobs=2):
        together = run(posterior())
    xr.testing.assert_identical(run(posterior()).ranks, together.ranks)


class Keyed(ThreadingBackend):
    """Functions are the keys of a set, as in dask's backend."""

    def submit(self, func: Any, callback: Any = None) -> Any:
        assert len({function for function, _, _ in func.items}) == 1
        return super().submit(func, callback)


def test_backends_may_look_functions_up() -> None:
    joblib.register_parallel_backend("keyed", Keyed)
    with joblib.parallel_config(backend="keyed", n_jobs=2):
        together = run(posterior())
    xr.testing.assert_identical(run(posterior()).ranks, together.ranks)


def test_fewer_simulations_are_the_first_ones() -> None:
    more = run(posterior()).ranks.isel(simulation=slice(12))
    assert run(posterior(), num_simulations=12).ranks.equals(more)


def test_random_states_and_param_store_are_left_alone() -> None:
    seen = []

    def fit_fn(model: Any, x: Tensor) -> dict[str, Tensor]:
        seen.append(float(pyro.param("loc", torch.tensor(0.0)).detach()))
        pyro.get_param_store()["loc"] = torch.tensor(5.0)
        return posterior()(model, x)

    pyro.clear_param_store()
    pyro.param("loc", torch.tensor(2.0))
    state = torch.get_rng_state()
    run(fit_fn)
    assert torch.equal(torch.get_rng_state(), state)
    assert pyro.param("loc").item() == 2.0
    assert seen == [0.0] * 20


def test_dims_are_those_of_plates_and_trees_are_taken() -> None:
    def schools(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("school", 3):
            theta = pyro.sample("theta", dist.Normal(mu, 1.0))
            pyro.deterministic("double", 2 * theta, event_dim=0)
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    def fit_fn(model: Any, y: Tensor) -> xr.DataTree:
        theta = np.random.normal(size=(2, 60, 3))
        return from_dict({"posterior": {"theta": theta, "double": 2 * theta}})

    found = run(fit_fn, schools, torch.zeros(3))
    assert found.ranks["theta"].dims == ("simulation", "school")
    assert found.ranks["theta"].equals(found.ranks["double"])  # twice as much, ranked as before
    assert found.table["parameter"].tolist()[:2] == ["theta[0]", "theta[1]"]
    assert "fit_fn has no draws of ['mu']." in str(found)


def test_elements_of_a_site_are_told_apart() -> None:
    def plated(y: Tensor) -> None:
        with pyro.plate("school", 3):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    def fit_fn(model: Any, y: Tensor) -> dict[str, Tensor]:
        scale = torch.tensor([1.0, 0.4, 1.0])  # in posterior sds
        return {"theta": y / 2 + 0.5**0.5 * scale * torch.randn(L, 3)}

    p = run(fit_fn, plated, torch.zeros(3), num_simulations=N).table.set_index("parameter")
    assert p.loc["theta[1]", "p_uniform"] < FALSE_ALARM_RATE
    assert p.loc["theta[1]", "finding"] == "too narrow"
    assert (p.loc[["theta[0]", "theta[2]"], "p_uniform"] > FALSE_ALARM_RATE).all()


def test_draws_are_taken_from_all_chains() -> None:
    """The first chain lies below the truth, the second above it."""

    def fit_fn(model: Any, x: Tensor) -> xr.DataTree:
        level = np.array([[-100.0], [100.0]])
        return from_dict({"posterior": {"z": level + np.random.normal(size=(2, 500))}})

    few = pytest.warns(UserWarning, match="effective sample size below")
    with few, pytest.warns(UserWarning, match="are alike"):
        found = run(fit_fn)
    assert (found.ranks["z"] == L / 2).all()


def wrong_shape(model: Any, x: Tensor) -> Any:
    return {"z": torch.randn(L, 2)}


MISTAKES = {
    "no draws": (lambda model, x: 3.0, TypeError, "returned float; expected a DataTree"),
    "shape": (wrong_shape, ValueError, r"'z' of shape \(2,\) each, but the site has shape \(\)"),
    "few": (lambda model, x: {"z": x + torch.randn(9)}, ValueError, "9 draws of 'z', but ranks"),
    "name": (lambda model, x: {"w": torch.randn(L)}, ValueError, r"\['w'\], but .* are \['z'\]"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_fit_fn_stop_everything(mistake: str) -> None:
    fit_fn, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        run(fit_fn)


def test_fixed_seeds_and_autocorrelation_are_noticed() -> None:
    def seeded(model: Any, x: Tensor) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return posterior()(model, x)

    def sticky(model: Any, x: Tensor) -> dict[str, Tensor]:
        return {"z": 2 / 3 * x + torch.randn(L).cumsum(0)}

    with pytest.warns(UserWarning, match=r"are alike \(correlation 1.00\).*fixed seed"):
        run(seeded)
    with pytest.warns(UserWarning, match="those of 'z', have an effective sample size below 100"):
        run(sticky)


@pytest.mark.parametrize(
    "name, size, least", [("num_simulations", 9, 10), ("num_draws", 0, 1), ("num_draws", -3, 1)]
)
def test_sizes_are_checked(name: str, size: int, least: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {size}"):
        run(posterior(), **{name: size})


def subsampled(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("i", 5, subsample_size=2):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(2))


def with_factor(x: Tensor) -> None:
    model(x)
    pyro.factor("extra", x)


def learnt(x: Tensor) -> None:
    pyro.param("a", torch.tensor(1.0))
    model(x)


def improper(x: Tensor) -> None:
    real = dist.constraints.real
    z = pyro.sample("z", dist.ImproperUniform(real, torch.Size(), torch.Size()))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def peeking(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(x.mean(), 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def unobserved(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))


def without_latents(x: Tensor) -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


REFUSED = {
    "plate 'i' is subsampled": subsampled,
    "factor 'extra' has no distribution": with_factor,
    r"parameters to learn, \['a'\]": learnt,
    "a distribution refuses": improper,
    r"prior of \['z'\] is improper": poutine.mask(model, False),
    "'z' reads the data other than through obs=": peeking,
    "observes nothing": unobserved,
    "no latent site": without_latents,
    "'z' is scaled": poutine.scale(model, 2.0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_models_without_a_prior_predictive_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(posterior(), REFUSED[message])


def test_data_take_the_place_of_arguments() -> None:
    """Also those of which the model observes views; others, equal ones even, stay as they are."""

    def views(batch: dict[str, Tensor], y: np.ndarray, other: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        x = batch["x"]
        with pyro.plate("i", 4):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[1:].reshape(-1))
        pyro.sample("y", dist.Normal(z, 1.0).expand([2]).to_event(1), obs=torch.from_numpy(y))
        pyro.sample("w", dist.Normal(other.sum(), 1.0), obs=other.new_zeros(()))

    x, y, other = torch.zeros(3, 2), np.zeros(2, np.float32), torch.zeros(3, 2)
    drawn = simulator(views, ({"x": x}, y), {"other": other})()
    trace = poutine.trace(drawn.model).get_trace(*drawn.args, **drawn.kwargs)
    seen = {name: trace.nodes[name]["value"] for name in ("x", "y")}
    assert all(trace.nodes[name]["is_observed"] for name in seen)
    batch, new_y = drawn.args
    assert torch.equal(batch["x"][1:].reshape(-1), seen["x"]) and (seen["x"] != 0).all()
    assert (batch["x"][0] == 0).all()
    assert (new_y == seen["y"].numpy()).all() and (new_y != 0).all()
    assert drawn.kwargs["other"] is other
    assert (x == 0).all() and (y == 0).all()


@pytest.mark.parametrize("mask", [torch.tensor(False), torch.tensor([True, False])])
def test_masked_latents_are_not_ranked(mask: Tensor) -> None:
    def masked(x: Tensor) -> None:
        model(x)
        with poutine.mask(mask=mask):
            pyro.sample("w", dist.Normal(torch.zeros(mask.shape), 1.0))

    def fit_fn(model: Any, x: Tensor) -> dict[str, Tensor]:
        return {**posterior()(model, x), "w": torch.zeros(L, *mask.shape)}

    found = run(fit_fn, masked)
    assert list(found.ranks) == ["z"]
    assert "['w'] are masked and not ranked." in str(found)


def planted(num_parameters: int = 1, narrow: int = 0) -> Calibration:
    """Uniform ranks, and one parameter whose ranks are all at the ends."""
    rng = np.random.default_rng(0)
    found = rng.integers(0, L + 1, size=(60, num_parameters))
    found[:, narrow] = np.where(rng.uniform(size=60) < 0.5, 0, L)
    data = xr.Dataset({"theta": (("simulation", "school"), found)})
    return Calibration(data, L, "uniform", {}, ())


def test_plots_show_the_worst_and_their_ranks() -> None:
    found = planted(30, narrow=17)
    for plot in (plot_sbc, plot_vsbc):
        figure = plot(found, max_parameters=4)
        titles = [axes.get_title() for axes in figure.axes if axes.axison]
        assert len(titles) == 4
        assert "4 of 30 parameters" in figure.get_suptitle()
        assert (plot is plot_vsbc) or titles[0].startswith("theta[17]\ntoo narrow")
    line = plot_sbc(found, 4).axes[0].lines[-1]
    u = np.sort(pit(found.scalars["theta[17]"], L))
    x, y = np.array(line.get_xdata()), np.array(line.get_ydata())
    below = np.searchsorted(u, x[1:-1], side="right") / 60
    np.testing.assert_allclose(y[1:-1], below - x[1:-1], atol=1e-12)
    colors = [axes.lines[-1].get_color() for axes in plot_sbc(found, 4).axes[:4]]
    assert [to_rgb(c) == to_rgb(colors[0]) for c in colors] == [True, False, False, False]


def test_histogram_counts_all_simulations() -> None:
    figure = plot_vsbc(planted())
    patches = [patch for patch in figure.axes[0].patches if isinstance(patch, StepPatch)]
    bars, mirrored = (np.asarray(patch.get_data()[0]) for patch in patches)
    assert bars.sum() == 60 and (bars == mirrored[::-1]).all() and bars[0] + bars[-1] == 60
    assert figure.get_supylabel() == "simulations"


def test_the_question_decides_sentence_and_plot() -> None:
    found = planted(2)
    assert "theta[0] is too narrow" in str(found)
    assert str(found.asking("symmetric")).startswith("No bias that 60 simulations could show")
    assert found.plot().get_suptitle() != found.asking("symmetric").plot().get_suptitle()


def test_the_report_takes_the_figure(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    p, q = (from_dict({"posterior": {"z": rng.normal(size=(2, 200))}}) for _ in range(2))
    page = write_report(compare({"q": q}, p), tmp_path / "report", calibration=planted().plot())
    html = page.read_text(encoding="utf-8")
    assert 'id="calibration"' in html and "too narrow" in html
    assert (page.parent / "calibration.svg").exists()


MODEL = """\
import pyro
import pyro.distributions as dist
import torch

def data():
    return torch.tensor([1.0, 2.0])

def model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("i", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

def fixed(x):
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.01))

guides = {"fixed": lambda: fixed}
"""


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_model.py").write_text(MODEL)
    options = ["--guide", "normal", "--guide", "fixed", "--steps", "20", "--simulations", "12"]
    assert main.main(["sbc", "my_model.py", *options, "--draws", "20", "--out", "out"]) == 0
    out = capsys.readouterr().out
    assert re.search("^normal, standard: ", out, re.MULTILINE)
    assert "fixed, standard: Not calibrated in 1 of 1 parameter (12 simulations): mu is" in out
    stems = {f"{g}-standard{s}" for g in ("normal", "fixed") for s in ("", "-symmetry")}
    assert {path.stem for path in Path("out").iterdir()} == stems
    suffixes = {path.suffix for path in Path("out").glob("normal-standard.*")}
    assert suffixes == {".csv", ".nc", ".png", ".svg"}
    assert pd.read_csv("out/fixed-standard.csv")["parameter"].tolist() == ["mu"]
    with xr.open_dataset("out/normal-standard.nc", engine="h5netcdf") as data:
        assert data.sizes == {"simulation": 12} and data.attrs["num_draws"] == 20
        assert data.attrs["notes"] == ""  # draws of different simulations are not alike


def test_a_deterministic_site_that_data_read_is_computed() -> None:
    """Outside of plates as well: Pyro marks its value as observed, and would draw it anew."""

    def doubled(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        twice = pyro.deterministic("twice", 2 * z)
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(twice, 1e-3), obs=x)

    _, args, _, truth = simulator(doubled, (torch.zeros(5),), {})()
    assert float(truth["twice"]) == 2 * float(truth["z"])
    assert float((args[0] - float(truth["twice"])).abs().max()) < 1e-3 * critical_value(5)
