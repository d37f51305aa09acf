"""Regressions, networks and factorizations in `models/`: densities, conditionals and symmetries."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.testing import assert_close

from models import bayesian_neural_network, horseshoe, matrix_factorization, robust_regression
from tests.models.test_models import latents, log_joint, trace
from tests.support.tolerances import FALSE_ALARM_RATE, critical_value


@pytest.fixture(autouse=True)
def float64() -> None:
    torch.set_default_dtype(torch.float64)


def test_robust_regression_density_is_that_of_the_docstring() -> None:
    x, y = args = robust_regression.data()
    values = latents(trace(robust_regression.model, args))
    b0, b, sigma, nu = (values[name].numpy() for name in ("b0", "b", "sigma", "nu"))
    expected = stats.norm().logpdf([b0, *b]).sum() + stats.halfnorm().logpdf(sigma)
    expected += stats.gamma(2, scale=10).logpdf(nu)
    expected += stats.t(nu, b0 + x.numpy() @ b, sigma).logpdf(y).sum()
    assert log_joint(robust_regression.model, args, values).item() == pytest.approx(expected)


def test_ammonia_data_are_those_published() -> None:
    """By the coefficients of least squares; the four days are far from what the others say."""
    x, y = robust_regression.measurements()
    x = torch.cat([torch.ones(len(y), 1), x], 1)
    coefficients = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    published = torch.tensor([-39.92, 0.7156, 1.2953, -0.1521])
    assert_close(coefficients, published, rtol=0, atol=5e-3)
    days = torch.arange(len(y))
    rest = torch.isin(days, torch.tensor(robust_regression.OUTLIERS), invert=True)
    others = torch.linalg.lstsq(x[rest], y[rest, None]).solution[:, 0]
    residual = y - x @ others
    sd = (residual[rest].square().sum() / (len(y[rest]) - 4)).sqrt()
    assert residual[~rest].abs().min() > 4 * sd > 1.5 * residual[rest].abs().max()


def test_horseshoe_is_gaussian_given_its_scales() -> None:
    """p(y, z | scales) = p(y | scales) p(w | y, scales) |dw / dz| for every z."""
    x, y = args = horseshoe.data()
    values = latents(trace(horseshoe.model, args))
    sigma, tau, lam = (values[name] for name in ("sigma", "tau", "lam"))
    prior = stats.halfnorm().logpdf(sigma) + stats.halfcauchy(scale=0.1).logpdf(tau)
    prior += stats.halfcauchy().logpdf(lam).sum()
    log_evidence, posterior = horseshoe.given_scales(x, y, sigma, tau, lam)
    for z in torch.randn(3, horseshoe.NUM_WEIGHTS):
        log_w = posterior.log_prob(tau * lam * z) + (tau * lam).log().sum()
        log_p = log_joint(horseshoe.model, args, {**values, "z": z})
        assert_close(log_p, prior + log_evidence + log_w)


def test_horseshoe_data_are_those_of_the_truth() -> None:
    x, y = horseshoe.data()
    squares = ((y - x @ horseshoe.true_weights()) / horseshoe.TRUTH["sigma"]).square().sum()
    chi2 = stats.chi2(len(y))
    assert min(chi2.cdf(squares), chi2.sf(squares)) > FALSE_ALARM_RATE / 2
    # Least squares finds the three among the twenty.
    estimate = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    assert set(estimate.abs().topk(3).indices.tolist()) == set(horseshoe.TRUTH["w"])


def test_neural_network_density_is_that_of_the_docstring() -> None:
    x, y = args = bayesian_neural_network.data()
    values = latents(trace(bayesian_neural_network.model, args))
    w, b, v, c = (values[name].numpy() for name in ("w", "b", "v", "c"))
    logit = np.full(len(y), c)
    for unit in range(bayesian_neural_network.NUM_HIDDEN):
        logit += v[unit] * np.tanh(b[unit] + x.numpy() @ w[unit])
    prior = sum(stats.norm(0, 2).logpdf(value).sum() for value in (w, b, v, c))
    expected = prior + stats.bernoulli(1 / (1 + np.exp(-logit))).logpmf(y).sum()
    found = log_joint(bayesian_neural_network.model, args, values).item()
    assert found == pytest.approx(expected)


def test_neural_network_has_many_copies_of_one_function() -> None:
    args = bayesian_neural_network.data()
    values = latents(trace(bayesian_neural_network.model, args))
    sign = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0])
    other = bayesian_neural_network.same_function(values, torch.tensor([3, 0, 4, 2, 1]), sign)
    assert all((other[name] != values[name]).any() for name in "wbv")
    runs = [trace(bayesian_neural_network.model, args, v) for v in (values, other)]
    assert_close(*(run.nodes["logit"]["value"] for run in runs))
    assert_close(*(run.log_prob_sum() for run in runs))


def test_users_are_gaussian_given_the_films() -> None:
    """p(r, u, v) = p(v) p(r | v) p(u | r, v) for every u."""
    args = matrix_factorization.data()
    v = latents(trace(matrix_factorization.model, args))["v"]
    log_evidence, posterior = matrix_factorization.given_films(*args, v)
    expected = stats.norm().logpdf(v).sum() + log_evidence
    for u in torch.randn(3, matrix_factorization.NUM_USERS, matrix_factorization.RANK):
        log_p = log_joint(matrix_factorization.model, args, {"u": u, "v": v})
        assert_close(log_p, expected + posterior.log_prob(u).sum())


def test_one_half_of_the_ratings_predicts_the_other() -> None:
    """At the mode, better than the prior mean, 0, does; and the halves are all pairs, once each."""
    args, (user, film, rating) = matrix_factorization.data(), matrix_factorization.held_out()
    pairs = torch.cat([args[0], user]) * matrix_factorization.NUM_FILMS + torch.cat([args[1], film])
    assert pairs.sort().values.tolist() == list(range(600))
    mode = {name: value.requires_grad_() for name, value in start(args).items()}
    optimizer = torch.optim.Adam(list(mode.values()), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (-log_joint(matrix_factorization.model, args, mode)).backward()
        optimizer.step()
    score = (mode["u"][user] * mode["v"][film]).sum(-1).detach()
    gain = rating**2 - (rating - score) ** 2
    assert gain.mean() / (gain.std() / len(gain) ** 0.5) > critical_value()


def start(args: tuple) -> dict[str, Tensor]:
    return {n: v.detach() for n, v in latents(trace(matrix_factorization.model, args)).items()}
