"""Series and curves in `models/`: what is known exactly, found again by another route."""

import itertools
import math

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from scipy import integrate, stats
from torch.testing import assert_close

from models import ar, gaussian_process, hmm, state_space
from tests.models.test_model_truths import least
from tests.models.test_models import latents, log_joint, trace
from tests.support.tolerances import critical_value


@pytest.fixture(autouse=True)
def float64() -> None:
    torch.set_default_dtype(torch.float64)


def test_ar_density_is_that_of_the_docstring() -> None:
    """Another route: scipy, along the series."""
    args, y = ar.data(), ar.series().numpy()
    values = latents(trace(ar.model, args))
    a, b, sigma = (values[name].numpy() for name in ("a", "b", "sigma"))
    expected = stats.norm().logpdf([a, *b]).sum() + stats.halfnorm().logpdf(sigma)
    for t in range(2, len(y)):
        expected += stats.norm(a + b[0] * y[t - 1] + b[1] * y[t - 2], sigma).logpdf(y[t])
    assert log_joint(ar.model, args, values).item() == pytest.approx(expected)


def test_ar_exact_agrees_with_adaptive_quadrature() -> None:
    """Another route: a and b integrated out jointly, then adaptive quadrature over sigma."""
    past, y = (tensor.numpy() for tensor in ar.data())
    x = np.column_stack([np.ones(len(y)), past])
    known = ar.exact(*ar.data())

    def integrand(sigma: float, power: int) -> float:
        marginal = stats.multivariate_normal(cov=x @ x.T + sigma**2 * np.eye(len(y)))
        log_p = marginal.logpdf(y) + stats.halfnorm().logpdf(sigma)
        return math.exp(log_p - known["log_evidence"]) * sigma**power

    moments = [integrate.quad(integrand, 0.3, 0.9, (power,))[0] for power in range(3)]
    assert moments[0] == pytest.approx(1, rel=1e-7)
    assert known["mean"]["sigma"].item() == pytest.approx(moments[1], rel=1e-7)
    assert known["sd"]["sigma"].item() == pytest.approx(
        (moments[2] - moments[1] ** 2) ** 0.5, rel=1e-5
    )


def test_ar_posterior_is_around_the_truth() -> None:
    known = ar.exact(*ar.data())
    for name, truth in ar.TRUTH.items():
        z = (known["mean"][name] - torch.tensor(truth)) / known["sd"][name]
        assert (z.abs() < critical_value(4)).all(), name


def test_evidence_of_a_gaussian_process_is_that_of_scikit_learn() -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    x, y = args = gaussian_process.data()
    values = latents(trace(gaussian_process.model, args))
    length, amplitude, noise = (float(values[n]) for n in ("length", "amplitude", "noise"))
    kernel = ConstantKernel(amplitude**2) * RBF(length) + WhiteKernel(noise**2)
    theirs = GaussianProcessRegressor(kernel, alpha=0.0, optimizer=None).fit(x[:, None], y)
    expected = theirs.log_marginal_likelihood_value_
    assert gaussian_process.log_likelihood(*args, **values).item() == pytest.approx(expected)
    for name, (loc, scale) in gaussian_process.PRIORS.items():
        expected += stats.lognorm(scale, scale=math.exp(loc)).logpdf(float(values[name]))
    assert log_joint(gaussian_process.model, args, values).item() == pytest.approx(expected)


def test_gaussian_process_exact_agrees_with_gauss_legendre() -> None:
    """Another rule, over the hyperparameters and not their logarithms."""
    args = gaussian_process.data()
    ranges = {"length": (0.1, 6.0), "amplitude": (0.1, 6.0), "noise": (0.1, 0.8)}
    points, weights = np.polynomial.legendre.leggauss(40)
    axes, log_w = [], torch.zeros(())
    for name, (low, high) in ranges.items():
        axes.append(torch.as_tensor(low + (high - low) * (points + 1) / 2))
        log_w = log_w[..., None] + torch.as_tensor(weights * (high - low) / 2).log()
        loc, scale = gaussian_process.PRIORS[name]
        log_w = log_w + torch.as_tensor(stats.lognorm(scale, scale=math.exp(loc)).logpdf(axes[-1]))
    nodes = dict(zip(ranges, torch.cartesian_prod(*axes).T, strict=True))
    log_p = log_w.flatten() + gaussian_process.log_likelihood(*args, **nodes)
    known = gaussian_process.exact(*args)
    assert known["log_evidence"] == pytest.approx(log_p.logsumexp(0).item(), abs=1e-4)
    for name, value in nodes.items():
        mean = log_p.softmax(0) @ value
        sd = (log_p.softmax(0) @ (value - mean) ** 2).sqrt()
        assert_close(known["mean"][name], mean, rtol=1e-3, atol=0)
        assert_close(known["sd"][name], sd, rtol=1e-3, atol=0)


def test_kalman_filter_is_the_density_of_a_joint_gaussian() -> None:
    (y,) = state_space.data()
    wander, noise = torch.rand(2, 3)
    times = torch.arange(1.0, len(y) + 1)
    walk = torch.minimum(times[:, None], times)
    for w, n, found in zip(
        wander, noise, state_space.log_likelihood(y, wander, noise), strict=True
    ):
        covariance = 4 + w**2 * walk + n**2 * torch.eye(len(y))
        expected = stats.multivariate_normal(cov=covariance.numpy()).logpdf(y.numpy())
        assert found.item() == pytest.approx(float(expected))


def test_state_space_density_is_that_of_the_docstring() -> None:
    (y,) = args = state_space.data()
    values = latents(trace(state_space.model, args))
    start, wander, noise, step = (values[n] for n in ("start", "wander", "noise", "step"))
    level = float(start)
    expected = stats.norm(0, 2).logpdf(level) + stats.halfnorm().logpdf([wander, noise]).sum()
    for e, value in zip(step.tolist(), y.tolist(), strict=True):
        level += float(wander) * e
        expected += stats.norm().logpdf(e) + stats.norm(level, float(noise)).logpdf(value)
    assert log_joint(state_space.model, args, values).item() == pytest.approx(expected)


def test_state_space_exact_agrees_with_gauss_legendre() -> None:
    (y,) = state_space.data()
    points, weights = np.polynomial.legendre.leggauss(80)
    axes = [torch.as_tensor(top * (points + 1) / 2) for top in (2.0, 2.0)]
    wander, noise = torch.cartesian_prod(*axes).T
    weight = torch.as_tensor(np.outer(weights, weights)).flatten()
    prior = sum(torch.as_tensor(stats.halfnorm().logpdf(v)) for v in (wander, noise))
    log_p = weight.log() + prior + state_space.log_likelihood(y, wander, noise)
    known = state_space.exact(y)
    assert known["log_evidence"] == pytest.approx(log_p.logsumexp(0).item(), abs=1e-6)
    for name, value in {"wander": wander, "noise": noise}.items():
        mean = log_p.softmax(0) @ value
        assert_close(known["mean"][name], mean, rtol=1e-6, atol=0)
        sd = (log_p.softmax(0) @ (value - mean) ** 2).sqrt()
        assert_close(known["sd"][name], sd, rtol=1e-6, atol=0)


def test_variances_of_the_nile_are_those_published() -> None:
    """With a start of which nothing is known."""
    flow = state_space.flow()
    assert flow.mean().item() == pytest.approx(919.35)

    def loss(log_variance: np.ndarray) -> float:
        wander, noise = torch.as_tensor(log_variance / 2).exp()
        return -state_space.log_likelihood(flow, wander, noise, start_sd=1e6).item()

    assert np.exp(least(loss, [7.0, 9.0]).x) == pytest.approx([1469.1, 15099], rel=1e-3)


def test_forward_algorithm_is_a_sum_over_paths() -> None:
    y = hmm.data()[0][:8]
    low, rise, leave = torch.tensor(12.0), torch.tensor(9.0), torch.tensor([0.2, 0.35])
    move = np.array([[0.8, 0.2], [0.35, 0.65]])
    start, rate = np.array([0.35, 0.2]) / 0.55, np.array([12.0, 21.0])
    total = 0.0
    for path in itertools.product((0, 1), repeat=len(y)):
        steps = [move[a, b] for a, b in itertools.pairwise(path)]
        total += start[path[0]] * np.prod(steps) * np.prod(stats.poisson(rate[[*path]]).pmf(y))
    assert hmm.log_likelihood(y, low, rise, leave).item() == pytest.approx(math.log(total))


def test_hmm_forms_are_one_model() -> None:
    """The sum in `DiscreteHMM`, the sum by Pyro's enumeration, and the forward algorithm."""
    args = hmm.data()
    values = latents(trace(hmm.model, args))
    low, rise, leave = (values[name] for name in ("low", "rise", "leave"))
    prior = stats.lognorm(0.5, scale=math.exp(2.5)).logpdf([low, rise]).sum()
    prior += stats.beta(1, 5).logpdf(leave).sum()
    expected = prior + hmm.log_likelihood(*args, **values).item()
    assert log_joint(hmm.model, args, values).item() == pytest.approx(expected)
    enumerated = poutine.condition(hmm.model_enumerated, values)
    loss = TraceEnum_ELBO(max_plate_nesting=0).loss(enumerated, lambda y: None, *args)
    assert -loss == pytest.approx(expected)


def test_likelihood_of_the_earthquakes_is_largest_where_published() -> None:
    (y,) = hmm.data()

    def loss(u: np.ndarray) -> float:
        low, rise = torch.as_tensor(u[:2]).exp()
        return -hmm.log_likelihood(y, low, rise, torch.as_tensor(u[2:]).sigmoid()).item()

    best = least(loss, [2.7, 2.4, -2.5, -2.0])
    low, rise = np.exp(best.x[:2])
    leave = torch.as_tensor(best.x[2:]).sigmoid().tolist()
    assert -best.fun == pytest.approx(-342.3183, abs=1e-4)
    assert [low, low + rise] == pytest.approx([15.472, 26.125], abs=1e-3)
    assert leave == pytest.approx([0.066, 0.128], abs=1e-3)
