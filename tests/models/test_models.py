"""The models compute what their docstrings say, in any dtype, on any device, for many particles."""

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from pyro.poutine.util import site_is_subsample
from scipy import integrate, stats
from torch import Tensor

from models import (
    eight_schools,
    funnel,
    gaussian_mixture,
    hmm,
    linear_regression,
    logistic_regression,
    radon,
    toy,
    vae,
)
from pyro_elbo_lab import StandardELBO

Program = Callable[..., Any]
Values = dict[str, Tensor]

NAMES = sorted(path.stem for path in (Path(__file__).parents[2] / "models").glob("*.py"))
FILES = {name: importlib.import_module(f"models.{name}") for name in NAMES}
OTHER_FORMS = {
    "eight_schools, centered": (eight_schools.model_centered, eight_schools.data),
    "funnel, non-centered": (funnel.model_noncentered, funnel.data),
    "hmm, enumerated": (hmm.model_enumerated, hmm.data),
    "toy, learnt": (toy.model_learnt, toy.data),
}
MODELS = {name: (file.model, file.data) for name, file in FILES.items()} | OTHER_FORMS
GUIDES = {
    (file_name, name): (file, make_guide)
    for file_name, file in FILES.items()
    if file is not gaussian_mixture  # its guides leave the species out
    for name, make_guide in getattr(file, "guides", {}).items()
}


@pytest.fixture(params=MODELS.values(), ids=list(MODELS))
def model_and_data(request: pytest.FixtureRequest) -> tuple[Program, Program]:
    return request.param


@pytest.fixture
def float64() -> None:
    torch.set_default_dtype(torch.float64)


def trace(program: Program, args: tuple, values: Values | None = None) -> poutine.Trace:
    conditioned = poutine.condition(program, values or {})
    result = poutine.trace(conditioned).get_trace(*args)
    result.compute_log_prob()
    return result


def sites(run: poutine.Trace) -> dict[str, Any]:
    """Sample sites with a density: no plate indices, nothing deterministic."""
    return {
        name: site
        for name, site in run.nodes.items()
        if site["type"] == "sample" and not site["infer"].get("_deterministic")
        if not site_is_subsample(site)
    }


def latents(run: poutine.Trace) -> Values:
    return {name: site["value"] for name, site in sites(run).items() if not site["is_observed"]}


def log_joint(program: Program, args: tuple, values: Values) -> Tensor:
    return trace(program, args, values).log_prob_sum()


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_files_have_what_the_readme_promises(file: Any) -> None:
    assert file.__doc__ and "Data:" in file.__doc__
    assert callable(file.model) and isinstance(file.data(), tuple)
    for tensor in file.data():
        assert tensor.dtype in (torch.get_default_dtype(), torch.int64)  # numbers, or indices
        assert tensor.isfinite().all()


def test_follows_the_dtype_and_device_of_the_data(
    model_and_data: tuple[Program, Program], dtype: torch.dtype, device: torch.device
) -> None:
    model, data = model_and_data
    args = tuple(
        tensor.to(device, dtype if tensor.is_floating_point() else None) for tensor in data()
    )
    for name, site in sites(trace(model, args)).items():
        for tensor in (site["value"], site["log_prob"]):
            assert tensor.device.type == device.type, name
            # an index of a component has no precision
            assert tensor.dtype == dtype or (name == "species" and tensor.dtype == torch.long), name


def in_particles(program: Program, num_particles: int) -> Program:
    def vectorized(*args: Any) -> None:
        with pyro.plate("particles", num_particles, dim=-2):
            program(*args)

    return vectorized


def check_particles(program: Program, args: tuple) -> None:
    """Densities of three particles in one run, and of the same three in runs of their own."""
    vectorized = trace(in_particles(program, 3), args)
    together = sum(site["log_prob"].sum(-1) for site in sites(vectorized).values())
    shapes = {name: value.shape for name, value in latents(trace(program, args)).items()}
    separate = []
    for k in range(3):
        values = {n: v[k].reshape(shapes[n]) for n, v in latents(vectorized).items()}
        separate.append(log_joint(program, args, values))
    torch.testing.assert_close(together, torch.stack(separate))


def test_particles_in_an_outer_plate_are_separate_runs(
    float64: None, model_and_data: tuple[Program, Program]
) -> None:
    model, data = model_and_data
    check_particles(model, data())


@pytest.mark.parametrize("file, make_guide", GUIDES.values(), ids=map(str, GUIDES))
def test_guides_run_in_an_outer_plate(float64: None, file: Any, make_guide: Program) -> None:
    check_particles(make_guide(), file.data())


@pytest.mark.parametrize("file, make_guide", GUIDES.values(), ids=map(str, GUIDES))
def test_guides_draw_what_the_model_samples(file: Any, make_guide: Program) -> None:
    args = file.data()
    of_model, of_guide = (latents(trace(p, args)) for p in (file.model, make_guide()))
    assert {n: v.shape for n, v in of_model.items()} == {n: v.shape for n, v in of_guide.items()}


def test_eight_schools_forms_are_one_model(float64: None) -> None:
    args = eight_schools.data()
    values = latents(trace(eight_schools.model, args))
    theta = values["mu"] + values["tau"] * values["z"]
    centered = {"mu": values["mu"], "tau": values["tau"], "theta": theta}
    torch.testing.assert_close(
        log_joint(eight_schools.model, args, values),
        log_joint(eight_schools.model_centered, args, centered) + 8 * values["tau"].log(),
    )


def test_eight_schools_exact_agrees_with_adaptive_quadrature() -> None:
    """Another route: mu and theta integrated out jointly, then adaptive quadrature over tau."""
    y, sigma = (tensor.double().numpy() for tensor in eight_schools.data())

    def integrand(tau: float, power: int) -> float:
        covariance = np.diag(sigma**2 + tau**2) + 25.0
        density = stats.multivariate_normal(np.zeros(8), covariance).pdf(y)
        return 1e13 * density * stats.halfcauchy(scale=5).pdf(tau) * tau**power

    z, first, second = (
        integrate.quad(integrand, 0, np.inf, (power,), epsabs=0, epsrel=1e-10, limit=500)[0]
        for power in range(3)
    )
    exact = eight_schools.exact(*eight_schools.data())
    assert exact["log_evidence"] == pytest.approx(math.log(z) - 13 * math.log(10), abs=1e-8)
    assert exact["mean"]["tau"].item() == pytest.approx(first / z, rel=1e-8)
    variance = second / z - (first / z) ** 2
    assert exact["sd"]["tau"].item() == pytest.approx(variance**0.5, rel=1e-8)


def test_eight_schools_exact_agrees_with_posteriordb(shared: Path) -> None:
    """That quadrature's own error is 2e-7."""
    folder = shared / "posteriordb" / "eight_schools-eight_schools_noncentered"
    known = json.loads((folder / "info.json").read_text())["exact"]
    exact = eight_schools.exact(*eight_schools.data())
    assert exact["log_evidence"] == pytest.approx(known["log_evidence"], abs=1e-6)
    for moment in ("mean", "sd"):
        ours = exact[moment]
        entries = {"mu": ours["mu"], "tau": ours["tau"]}
        entries |= {f"theta[{j + 1}]": ours["theta"][j] for j in range(8)}
        assert {n: float(v) for n, v in entries.items()} == pytest.approx(known[moment], abs=1e-6)


def test_conditional_guide_is_exact_given_tau(float64: None) -> None:
    """So the log-weight is a function of tau alone."""
    args = eight_schools.data()
    guide = poutine.condition(eight_schools.conditional_guide, {"tau": torch.tensor(3.0)})
    log_weights = []
    for _ in range(3):
        drawn = trace(guide, args)
        values = {name: drawn.nodes[name]["value"] for name in ("mu", "tau", "z")}
        log_p = log_joint(eight_schools.model, args, values)
        log_weights.append(log_p - drawn.log_prob_sum())
    torch.testing.assert_close(torch.stack(log_weights), log_weights[0].expand(3))


def test_linear_regression_exact_agrees_with_conditioning_a_joint_gaussian() -> None:
    """Another route: the covariance of (w, y), conditioned on y."""
    x, y = (tensor.double() for tensor in linear_regression.data())
    marginal = x @ x.T + linear_regression.NOISE**2 * torch.eye(len(y), dtype=x.dtype)
    gain = torch.linalg.solve(marginal, x).T
    exact = linear_regression.exact(x, y)
    torch.testing.assert_close(exact["mean"]["w"], gain @ y)
    covariance = torch.eye(x.shape[1], dtype=x.dtype) - gain @ x
    torch.testing.assert_close(exact["covariance"]["w"], covariance)
    torch.testing.assert_close(exact["sd"]["w"], covariance.diagonal().sqrt())
    log_evidence = dist.MultivariateNormal(torch.zeros_like(y), marginal).log_prob(y)
    assert exact["log_evidence"] == pytest.approx(log_evidence.item(), rel=1e-12)


def test_exact_guide_has_constant_log_weights(float64: None) -> None:
    args = linear_regression.data()
    for _ in range(3):
        drawn = trace(linear_regression.exact_guide, args)
        log_p = log_joint(linear_regression.model, args, {"w": drawn.nodes["w"]["value"]})
        log_weight = log_p - drawn.log_prob_sum()
        assert log_weight.item() == pytest.approx(linear_regression.exact(*args)["log_evidence"])


@pytest.mark.parametrize("file", [linear_regression, logistic_regression])
def test_covariates_are_standardized(float64: None, file: Any) -> None:
    x, y = file.data()
    torch.testing.assert_close(x.mean(0), torch.zeros(x.shape[1]))
    torch.testing.assert_close(x.var(0, correction=0), torch.ones(x.shape[1]))
    assert len(x) == len(y)


def test_logistic_regression_labels_are_binary() -> None:
    x, y = logistic_regression.data()
    assert x.shape == (569, 30) and y.unique().tolist() == [0.0, 1.0] and y.sum() == 357


def test_radon_counties_are_of_every_size() -> None:
    county, floor, y = radon.data()
    houses = county.bincount()
    assert len(houses) == radon.NUM_COUNTIES and houses.sum() == len(y) == radon.NUM_HOUSES
    assert houses.min() == 1 and houses.max() > 50
    assert floor.unique().tolist() == [0.0, 1.0]


def test_radon_data_repeat_whatever_the_seed() -> None:
    first = radon.data()
    pyro.set_rng_seed(1)
    assert all(map(torch.equal, first, radon.data()))


def test_radon_density_is_that_of_the_docstring(float64: None) -> None:
    """Another route: scipy, house by house."""
    county, floor, y = args = radon.data()
    values = latents(trace(radon.model, args))
    mu, tau, b, sigma, a = (values[n].numpy() for n in ("mu", "tau", "b", "sigma", "a"))
    expected = (
        stats.norm(0, 5).logpdf([mu, b]).sum()
        + stats.halfnorm().logpdf([tau, sigma]).sum()
        + stats.norm(mu, tau).logpdf(a).sum()
        + stats.norm(a[county] + b * floor.numpy(), sigma).logpdf(y).sum()
    )
    assert log_joint(radon.model, args, values).item() == pytest.approx(expected)


@pytest.mark.parametrize("num_particles", [1, 16])
@pytest.mark.parametrize("file", [radon, vae], ids=lambda file: file.__name__)
def test_a_few_steps_lower_the_loss(file: Any, num_particles: int) -> None:
    args = (file.data()[0][:128],) if file is vae else file.data()
    guide = vae.Encoder() if file is vae else AutoNormal(file.model)
    objective = StandardELBO(num_particles, vectorize_particles=True)
    svi = SVI(file.model, guide, Adam({"lr": 0.01}), loss=objective)
    losses = [svi.step(*args) for _ in range(60)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_encoder_takes_images_of_any_size() -> None:
    x = torch.rand(5, 100).round()
    drawn = trace(vae.Encoder(100), (x,)).nodes["z"]["value"]
    assert drawn.shape == (5, vae.NUM_LATENTS)
    scored = trace(vae.model, (x,), {"z": drawn})
    assert scored.nodes["x"]["log_prob"].shape == (5,)
