"""What the model files say is known exactly, found again by another route."""

import importlib
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor
from torch.testing import assert_close

from models import (
    banana,
    correlated_gaussian,
    funnel,
    toy,
)
from pyro_elbo_lab import StandardELBO
from tests.models.test_models import FILES, in_particles, latents, log_joint, sites, trace
from tests.support.tolerances import assert_mean_equals
from tests.trust.posteriors.optimum import mean_field

EXACT = [name for name, file in FILES.items() if hasattr(file, "exact")]
NUM_POINTS = 2**12
near = partial(assert_close, rtol=0.0, atol=16 / NUM_POINTS)
"""An average over N Sobol points has an error of the order of 1 / N."""


@pytest.fixture(autouse=True)
def float64() -> None:
    torch.set_default_dtype(torch.float64)


def least(loss: Callable[[np.ndarray], float], start: Sequence[float]) -> Any:
    """Where a smooth function is least, and how small it is there."""
    options = {"xatol": 1e-7, "fatol": 1e-11, "maxiter": 5000}
    found = optimize.minimize(loss, start, method="Nelder-Mead", options=options)
    assert found.success
    return found


def density(program: Callable[..., Any], args: tuple, **grid: Tensor) -> Tensor:
    """log p(x, z) at each point of a grid (n,) of scalar sites."""
    values = {name: value[:, None] for name, value in grid.items()}
    run = trace(program, args, values)
    return sum(site["log_prob"].sum(-1) for site in sites(run).values())


@pytest.mark.parametrize("name", EXACT)
def test_moments_have_the_shapes_of_their_sites(name: str) -> None:
    file = importlib.import_module(f"models.{name}")
    known, nodes = file.exact(*file.data()), trace(file.model, file.data()).nodes
    assert known["mean"].keys() == known["sd"].keys() and math.isfinite(known["log_evidence"])
    for moment, (site, value) in itertools.product(("mean", "sd"), known["mean"].items()):
        assert value.shape == known[moment][site].shape == nodes[site]["value"].shape
        assert known[moment][site].dtype == torch.float64


def test_toy_exact_agrees_with_a_sum_over_a_grid() -> None:
    args = toy.data()
    z = torch.linspace(-6, 6, 20_001)
    log_p = density(toy.model, args, z=z) + (z[1] - z[0]).log()
    weight = log_p.softmax(0)
    known = toy.exact(*args)
    assert known["log_evidence"] == pytest.approx(log_p.logsumexp(0).item(), abs=1e-9)
    assert_close(known["mean"]["z"], weight @ z)
    assert_close(known["sd"]["z"], (weight @ (z - weight @ z) ** 2).sqrt())


def test_toy_elbo_is_an_expectation_under_its_guide() -> None:
    """log q is -(z - phi)^2 and a constant, log p(x_i | z) is -(x_i - theta z)^2 and the same."""
    args, theta, phi = toy.data(), 0.6, 0.3
    z = torch.linspace(-6, 6, 20_001)
    pyro.param("theta", torch.tensor(theta))
    pyro.param("phi", torch.tensor(phi))
    log_q = density(toy.guide, args, z=z)
    assert_close(log_q, -((z - phi) ** 2) - math.log(math.pi) / 2)
    log_p = density(toy.model_learnt, args, z=z)
    elbo = ((log_q.exp() * (log_p - log_q)).sum() * (z[1] - z[0])).item()
    assert toy.elbo(*args, theta, phi) == pytest.approx(elbo, abs=1e-8)


def test_toy_optima() -> None:
    """The largest evidence and the largest ELBO, by a search."""
    args = toy.data()
    by_evidence = least(lambda t: -toy.exact(*args, float(t[0]))["log_evidence"], [0.1])
    assert toy.maximum_likelihood(*args) == pytest.approx(abs(by_evidence.x[0]), abs=1e-5)
    by_elbo = least(lambda t: -toy.elbo(*args, float(t[0]), float(t[1])), [0.1, 0.5])
    assert toy.largest_elbo(*args) == pytest.approx(by_elbo.x, abs=1e-5)
    assert -by_elbo.fun < -by_evidence.fun
    assert toy.largest_elbo(torch.zeros(9)) == (0.0, 0.0) and not toy.maximum_likelihood(
        args[0] * 0
    )


def test_mean_field_of_a_correlated_gaussian() -> None:
    args = correlated_gaussian.data()
    known, best = correlated_gaussian.exact(*args), correlated_gaussian.mean_field(*args)
    shrinkage = (1 - correlated_gaussian.RHO**2) ** 0.5
    assert_close(best["sd"]["z"] / known["sd"]["z"], torch.full((2,), shrinkage))
    assert best["elbo"] == pytest.approx(math.log(shrinkage))
    guide = mean_field(correlated_gaussian.model, *args, num_points=NUM_POINTS)
    near(guide.scale.detach(), best["sd"]["z"])
    near(guide.loc.detach(), best["mean"]["z"])
    objective = StandardELBO(NUM_POINTS, sampler="sobol", vectorize_particles=True)
    loss = objective.loss(correlated_gaussian.model, guide, *args)
    assert -loss == pytest.approx(best["elbo"], abs=16 / NUM_POINTS)


def test_funnel_is_that_of_scipy_in_both_forms() -> None:
    (scale,) = funnel.data()
    values = latents(trace(funnel.model, (scale,)))
    v, x = values["v"], values["x"]
    expected = stats.norm(0, 3).logpdf(v) + stats.norm(0, (v / 2).exp()).logpdf(x).sum()
    log_p = log_joint(funnel.model, (scale,), values)
    assert log_p.item() == pytest.approx(float(expected))
    noncentered = {"v": v, "z": x / (v / 2).exp()}
    assert_close(log_joint(funnel.model_noncentered, (scale,), noncentered), log_p + 9 * v / 2)


def test_funnel_marginals_by_draws() -> None:
    """v is Normal, and independent of the x_i over their scale, which are standard normal."""
    (scale,) = args = funnel.data()
    values = latents(trace(in_particles(funnel.model, 20_000), args))
    v, z = values["v"] / scale, values["x"] / (values["v"] / 2).exp()
    standard = torch.cat([v, z], -1)
    assert_mean_equals(standard, 0)
    assert_mean_equals(standard.unsqueeze(-1) * standard.unsqueeze(-2), torch.eye(10))


def test_funnel_variance_of_what_is_scaled() -> None:
    """Var(x_i) is the integral of exp(v), its variance given v, over the density of v."""
    (scale,) = funnel.data()
    v = torch.linspace(-30, 50, 4001)
    pdf = stats.norm(0, float(scale)).pdf(v.numpy())
    variance = float((pdf * np.exp(v.numpy())).sum() * (v[1] - v[0]))
    assert_close(funnel.exact(scale)["sd"]["x"], torch.full((9,), variance**0.5))


def test_conditional_guide_of_the_funnel_can_be_exact() -> None:
    (scale,) = args = funnel.data()
    pyro.param("v_scale", scale, constraint=torch.distributions.constraints.positive)
    drawn = trace(funnel.conditional_guide, args)
    log_p = log_joint(funnel.model, args, latents(drawn))
    assert_close(log_p, drawn.log_prob_sum())


def test_banana_moments_by_a_sum_over_a_grid() -> None:
    args = banana.data()
    x, y = torch.linspace(-80, 80, 1601), torch.linspace(-200, 12, 2121)
    grid = torch.cartesian_prod(x, y)
    log_p = density(banana.model, args, x=grid[:, 0], y=grid[:, 1])
    weight = log_p.exp() * (x[1] - x[0]) * (y[1] - y[0])
    known = banana.exact(*args)
    assert weight.sum().item() == pytest.approx(math.exp(known["log_evidence"]))
    for column, name in enumerate("xy"):
        value = grid[:, column]
        assert known["mean"][name].item() == pytest.approx((weight @ value).item(), abs=1e-9)
        assert known["sd"][name].item() == pytest.approx((weight @ value**2).item() ** 0.5)
    assert (weight @ grid.prod(-1)).item() == pytest.approx(0, abs=1e-9)


def test_conditional_guide_of_the_banana_can_be_exact() -> None:
    (b,) = args = banana.data()
    positive = torch.distributions.constraints.positive
    pyro.param("x_scale", torch.tensor(banana.SD), constraint=positive)
    pyro.param("level", b * banana.SD**2)
    pyro.param("bend", b)
    drawn = trace(banana.conditional_guide, args)
    assert_close(log_joint(banana.model, args, latents(drawn)), drawn.log_prob_sum())
