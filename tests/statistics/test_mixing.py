"""Monte Carlo errors of many quantities at once equal ArviZ's, one at a time."""

import numpy as np
import pytest
from arviz_stats.base import array_stats

from pyro_elbo_lab.statistics.distances import Moments
from pyro_elbo_lab.statistics.mixing import mixing, rank_mixing

AXES = {"chain_axis": 1, "draw_axis": 2}


def autoregressive(phi: float, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Stationary AR(1) draws (P, chain, draw) of unit variance."""
    x = np.random.default_rng(seed).normal(size=shape)
    for t in range(1, shape[2]):
        x[..., t] = phi * x[..., t - 1] + np.sqrt(1 - phi**2) * x[..., t]
    return x


@pytest.mark.parametrize("shape", [(5, 4, 500), (5, 1, 51), (5, 3, 26)])
@pytest.mark.parametrize("phi", [-0.6, 0.0, 0.6, 0.98])
def test_mixing_equals_arviz(phi: float, shape: tuple[int, ...]) -> None:
    x = autoregressive(phi, shape)
    found = mixing(x)
    np.testing.assert_allclose(found.ess, array_stats.ess(x, **AXES, method="mean"), rtol=1e-10)
    half = shape[2] // 2
    split = np.concatenate([x[..., :half], x[..., -half:]], axis=1)
    r_hat = array_stats.rhat(split, **AXES, method="identity")
    np.testing.assert_allclose(found.r_hat, r_hat, rtol=1e-10)


@pytest.mark.parametrize("num_draws", [4, 5, 6])
def test_the_shortest_chains_equal_arviz(num_draws: int) -> None:
    x = autoregressive(0.0, (1, 2, num_draws))
    found = rank_mixing(x)
    bulk = array_stats.ess(x, **AXES, method="bulk")
    tail = array_stats.ess(x, **AXES, method="tail", prob=(0.05, 0.95))
    np.testing.assert_allclose(found.ess, np.minimum(bulk, tail))
    np.testing.assert_allclose(found.r_hat, array_stats.rhat(x, **AXES))


def test_fewer_draws_say_nothing_of_mixing() -> None:
    found = rank_mixing(autoregressive(0.0, (1, 2, 3)))
    assert np.isnan(found.ess).all() and np.isnan(found.r_hat).all()


def test_errors_of_moments_equal_arviz() -> None:
    x = autoregressive(0.5, (5, 4, 300))
    found = Moments.of(x)
    np.testing.assert_allclose(found.mean_se, array_stats.mcse(x, **AXES, method="mean"))
    # The delta method by hand: earlier versions of ArviZ have another error of an sd.
    square = (x - x.mean((1, 2), keepdims=True)) ** 2
    sd_se = array_stats.mcse(square, **AXES, method="mean") / (2 * x.std((1, 2), ddof=1))
    np.testing.assert_allclose(found.sd_se, sd_se)


def test_what_never_varies_has_no_error() -> None:
    x = np.stack([np.full((2, 50), 3.0), np.repeat([[0.0], [1.0]], 50, axis=1)])
    found = mixing(x)
    assert found.ess[0] == 100 and found.r_hat[0] == 1
    assert found.r_hat[1] == np.inf  # two chains, each stuck at its own value
    assert Moments.of(x[:1]).mean_se == 0
