"""What runs on a CPU runs on a GPU, with the same answers: fits, references, diagnostics, files.

Other files hold the same on a CPU, so that here is the GPU alone.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

import pyro_elbo_lab as lab

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device present")

ROWS = 64
TRUE_SLOPE = 0.8


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda")


def data(device: torch.device) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=ROWS)
    y = 0.3 + TRUE_SLOPE * x + rng.normal(size=ROWS)
    return torch.tensor(x).float().to(device), torch.tensor(y).float().to(device)


def line(x: Tensor, y: Tensor, batch: int | None = None) -> None:
    """A conjugate regression, noise 1, whose posterior has a closed form."""
    zero = x.new_zeros(())
    a = pyro.sample("a", dist.Normal(zero, zero + 1))
    b = pyro.sample("b", dist.Normal(zero, zero + 1))
    with pyro.plate("rows", len(x), subsample_size=batch, device=x.device) as i:
        mean = a[..., None] + b[..., None] * x[i]
        pyro.sample("y", dist.Normal(mean, zero + 1), obs=y[i])


def schools(y: Tensor) -> None:
    """Local latents in a plate, and a global that is positive."""
    zero = y.new_zeros(())
    tau = pyro.sample("tau", dist.LogNormal(zero, zero + 1))
    with pyro.plate("groups", len(y)):
        theta = pyro.sample("theta", dist.Normal(zero, tau[..., None]))
        pyro.sample("obs", dist.Normal(theta, zero + 1), obs=y)


def mixture(y: Tensor) -> None:
    """A discrete latent, summed out."""
    zero = y.new_zeros(())
    shift = pyro.sample("shift", dist.Normal(zero, zero + 3))
    with pyro.plate("points", len(y)):
        k = pyro.sample("k", dist.Bernoulli(zero + 0.5), infer={"enumerate": "parallel"})
        pyro.sample("obs", dist.Normal(shift * (2 * k - 1), zero + 1), obs=y)


def exact(x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray, float]:
    """Means, sds and log p(y) of `line`."""
    design = torch.stack([torch.ones_like(x), x], -1).double().cpu().numpy()
    targets = y.double().cpu().numpy()
    covariance = np.linalg.inv(design.T @ design + np.eye(2))
    of_y = design @ design.T + np.eye(ROWS)
    log_p = -0.5 * (targets @ np.linalg.solve(of_y, targets) + np.linalg.slogdet(of_y)[1])
    log_p -= 0.5 * ROWS * math.log(2 * math.pi)
    return covariance @ design.T @ targets, np.sqrt(np.diag(covariance)), log_p


def check_line(tree: Any, x: Tensor, y: Tensor, within: float) -> None:
    means, sds, _ = exact(x, y)
    for name, mean, sd in zip("ab", means, sds, strict=True):
        draws = tree["posterior"][name].values
        assert abs(draws.mean() - mean) < within * sd
        assert abs(draws.std() / sd - 1) < within


OBJECTIVES: dict[str, Callable[[], Any]] = {
    "ELBO": lambda: lab.StandardELBO(num_particles=4),
    "quasi-random": lambda: lab.StandardELBO(num_particles=4, sampler="sobol"),
    "IW": lambda: lab.ImportanceWeightedELBO(num_particles=4),
    "analytic KL": lambda: lab.AnalyticKLELBO(num_particles=4),
    "Renyi": lambda: lab.RenyiELBO(0.5, num_particles=4),
    "TVO": lambda: lab.ThermodynamicELBO(num_particles=4),
    "wake-sleep": lambda: lab.ReweightedWakeSleep(num_particles=4),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_compiled(name: str, device: torch.device) -> None:
    x, y = data(device)
    result = lab.fit(
        line, AutoMultivariateNormal(line), x, y, objective=OBJECTIVES[name](),
        optimizer=pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.999}), num_steps=3000,
        compile=True, average=0.3, progress=False,
    )  # fmt: skip
    check_line(result.posterior(num_samples=4000), x, y, within=0.15)


def test_the_compiled_graph_gives_the_losses_of_eager_runs(device: torch.device) -> None:
    x, y = data(device)

    def losses(compiled: bool) -> Tensor:
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        objective = lab.ImportanceWeightedELBO(num_particles=3)
        loss = lab.compiled(objective) if compiled else objective
        svi = SVI(line, AutoNormal(line), pyro.optim.Adam({"lr": 0.01}), loss)
        return torch.tensor([svi.step(x, y) for _ in range(300)])

    eager, compiled = losses(False)[-200:], losses(True)[-200:]
    se = (eager.var() + compiled.var()).div(200).sqrt()
    assert (eager.mean() - compiled.mean()).abs() < 5 * se


def test_minibatches_are_drawn_in_the_graph(device: torch.device) -> None:
    x, y = data(device)
    result = lab.fit(
        line, AutoMultivariateNormal(line), x, y, 16, objective=lab.StandardELBO(num_particles=8),
        optimizer=pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.998}), num_steps=4000,
        compile=True, average=0.3, progress=False,
    )  # fmt: skip
    check_line(result.posterior(num_samples=4000), x, y, within=0.3)


def test_discrete_latents_are_summed_out(device: torch.device) -> None:
    y = torch.cat([torch.full((30,), 2.0), torch.full((30,), -2.0)]).to(device)
    guide = AutoNormal(pyro.poutine.block(mixture, hide=["k"]))
    result = lab.fit(
        mixture, guide, y, objective=lab.StandardELBO(num_particles=4), num_steps=500,
        compile=True, progress=False,
    )  # fmt: skip
    assert abs(abs(result.posterior()["posterior"]["shift"].to_numpy().mean()) - 2) < 0.3


def test_a_fit_is_judged(device: torch.device, tmp_path: Path) -> None:
    """NUTS, comparison, evidence, weights, decomposition, report and file of one fit."""
    x, y = data(device)
    _, _, log_p = exact(x, y)
    guide = AutoMultivariateNormal(line)
    result = lab.fit(
        line, guide, x, y, objective=lab.StandardELBO(num_particles=8),
        optimizer=pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.998}), num_steps=3000,
        average=0.3, progress=False,
    )  # fmt: skip
    result.save(tmp_path / "fit.pt")
    again = lab.Fit.load(
        tmp_path / "fit.pt", line, AutoMultivariateNormal(line), x, y, objective=result.objective
    )
    tree = again.posterior(num_samples=4000)
    check_line(tree, x, y, within=0.15)
    assert float(lab.importance_diagnostics(tree)["k_hat"]) < 0.7

    reference = lab.nuts(line, x, y, seed=1, progress=False)
    check_line(reference, x, y, within=0.15)
    comparison = lab.compare({"full rank": tree}, reference)
    bounds = lab.evidence(line, guide, x, y, reference=reference, num_samples=4000)
    assert bounds.lower is not None and bounds.upper is not None
    rounding = 1e-3
    assert bounds.lower.value < log_p + 5 * bounds.lower.se + rounding
    assert bounds.upper.value > log_p - 5 * bounds.upper.se - rounding
    lab.write_report(comparison, tmp_path / "report")
    assert (tmp_path / "report" / "index.html").is_file()
    terms = lab.decompose(line, guide, x, y, num_samples=4000)
    assert abs(terms.elbo.value - log_p) < 0.1


def test_local_latents(device: torch.device) -> None:
    y = torch.linspace(-2, 2, 8, device=device)
    result = lab.fit(
        schools, AutoNormal(schools), y, objective=lab.ImportanceWeightedELBO(num_particles=8),
        num_steps=500, compile=True, progress=False,
    )  # fmt: skip
    tree = lab.from_guide(result.guide, schools, y, num_samples=500)
    assert tree["posterior"]["theta"].shape[-1] == 8
    assert np.isfinite(lab.importance_diagnostics(tree)["k_hat"])
