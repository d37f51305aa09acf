"""Joint distances have their closed forms, and their noise floors hold."""

import math

import numpy as np
import pytest
from scipy import stats

from pyro_elbo_lab.statistics import joint
from pyro_elbo_lab.statistics.correlations import governed_spread, largest_difference, unit
from pyro_elbo_lab.statistics.joint import joint_distances
from tests.support.tolerances import assert_mean_equals, critical_value

N = 1000


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_sliced_wasserstein_of_a_shift(rng: np.random.Generator) -> None:
    """The mean square over an orthonormal basis of the projected shifts is |shift|² / d."""
    x, shift = rng.normal(size=(N, 3)), np.array([1.0, -2.0, 0.5])
    found = joint_distances(x + shift, x)["sliced_wasserstein"]
    assert found == pytest.approx(np.linalg.norm(shift) / math.sqrt(3))


def test_energy_distance_equals_scipys(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(200, 1)), rng.exponential(size=(200, 1))
    expected = stats.energy_distance(x[:, 0], y[:, 0])
    assert joint_distances(x, y)["energy_distance"] == pytest.approx(expected)


def test_mmd_matches_the_closed_form(rng: np.random.Generator) -> None:
    """E k(x, y) = (h² / (h² + 2))^(d/2) exp(-|shift|² / (2 (h² + 2))) for two unit normals.

    Squared, with the 1/n of the diagonal, where the kernel is 1.
    """
    d, shift, n = 2, 4.0, 300

    def squared() -> tuple[float, float]:
        x, y = rng.normal([shift, 0], 1, size=(n, d)), rng.normal(size=(n, d))
        pooled = np.concatenate([x, y])
        h2 = joint.median_distance(np.linalg.norm(pooled[:, None] - pooled, axis=-1)) ** 2
        within = (h2 / (h2 + 2)) ** (d / 2)
        between = within * math.exp(-(shift**2) / (2 * (h2 + 2)))
        expected = 2 * (within - between) + 2 * (1 - within) / n
        return joint_distances(x, y)["mmd"] ** 2, expected

    pairs = np.array([squared() for _ in range(30)])
    assert_mean_equals(pairs[:, 0] - pairs[:, 1], 0.0)


@pytest.mark.parametrize(("shift", "scale"), [(1.0, 1.0), (0.0, 3.0), (0.0, 1.0)])
def test_classifier_reaches_the_best_accuracy(
    shift: float, scale: float, rng: np.random.Generator
) -> None:
    """For normal distributions the best classifier is the one that is fitted: (1 + TV) / 2."""
    x, y = shift + scale * rng.normal(size=(N, 2)), rng.normal(size=(N, 2))
    density = [stats.norm.pdf(x, shift, scale).prod(1), stats.norm.pdf(x).prod(1)]
    other = [stats.norm.pdf(y, shift, scale).prod(1), stats.norm.pdf(y).prod(1)]
    best = ((density[0] > density[1]).mean() + (other[0] < other[1]).mean()) / 2
    best = 0.5 if (shift, scale) == (0, 1) else best
    found = joint_distances(x, y)
    assert abs(found["c2st"] - best) < critical_value() * found["c2st_se"]


def test_classifier_sees_a_wrong_correlation(rng: np.random.Generator) -> None:
    """Standard normal marginals, and a correlation of 0.9 that one side lacks: (1 + TV) / 2."""
    cov = np.array([[1, 0.9], [0.9, 1]])
    x, y = rng.normal(size=(N, 2)), rng.multivariate_normal([0, 0], cov, size=N)
    found = joint_distances(x, y)
    p, q = stats.multivariate_normal([0, 0], cov), stats.multivariate_normal([0, 0])
    best = ((q.pdf(x) > p.pdf(x)).mean() + (p.pdf(y) > q.pdf(y)).mean()) / 2
    assert abs(found["c2st"] - best) < critical_value() * found["c2st_se"]
    assert max(found[f"{name}_p"] for name in ("mmd", "energy_distance")) == 0.01


def test_floors_and_p_values_hold_for_equal_distributions(rng: np.random.Generator) -> None:
    """Below the floor in 95 % of the cases; p-values uniform; accuracy one half."""
    found = [joint_distances(*rng.normal(size=(2, 60, 3))) for _ in range(150)]
    for name in ("sliced_wasserstein", "mmd", "energy_distance"):
        above = np.array([f[name] > f[f"{name}_floor"] for f in found])
        assert_mean_equals(above.astype(float), 0.05)
        assert stats.kstest([f[f"{name}_p"] for f in found], "uniform").pvalue > 1e-6
    accuracy = np.array([f["c2st"] for f in found])
    assert_mean_equals(accuracy, 0.5)
    assert accuracy.std() < 1.5 * found[0]["c2st_se"]


def test_many_parameters_use_no_products(rng: np.random.Generator) -> None:
    found = joint_distances(1.3 * rng.normal(size=(400, 40)), rng.normal(size=(400, 40)))
    assert found["c2st"] > 0.75 and found["sliced_wasserstein_p"] == 0.01


def test_correlation_errors_match_the_closed_form(rng: np.random.Generator) -> None:
    """The largest difference to another parameter, with error (1 - r²)/√N from both sides."""
    z = rng.normal(size=(2, 4000))
    b = np.stack([z[0], 0.6 * z[0] + 0.8 * z[1]])
    a = rng.normal(size=(2, 4000))
    ess = np.full(2, 4000.0)
    error, se = largest_difference(
        unit(a) @ unit(a).T, unit(b) @ unit(b).T, np.eye(2, dtype=bool), ess, ess
    )
    np.testing.assert_allclose(se, math.hypot(1, 1 - 0.6**2) / math.sqrt(4000), rtol=0.05)
    assert (abs(error - 0.6) < critical_value(2) * se).all()
    alone = np.ones((1, 1), bool)
    assert np.isnan(
        largest_difference(np.ones((1, 1)), np.ones((1, 1)), alone, ess[:1], ess[:1])
    ).all()


def test_only_funnels_and_curves_have_governed_spreads(rng: np.random.Generator) -> None:
    cov = np.full((4, 4), 0.95) + 0.05 * np.eye(4)
    normal = rng.multivariate_normal(np.zeros(4), cov, size=1000)
    assert governed_spread(normal)[0].max() < critical_value(12) / math.sqrt(1000)
    v = rng.normal(size=(1000, 1))
    for sign in (1, -1):
        funnel = np.hstack([v, np.exp(sign * v / 2) * rng.normal(size=(1000, 3))])
        strength, bend = governed_spread(funnel)
        assert strength.argmax() == 0 and strength[0] > 0.4 and bend[0] < 0.25
        curve = np.hstack([sign * v**2 + 0.5 * rng.normal(size=(1000, 1)), v])
        strength, bend = governed_spread(curve)
        assert strength.argmax() == 0 and strength[0] > 0.4 and bend[0] > 0.6


def test_discrete_parameters_govern_nothing(rng: np.random.Generator) -> None:
    binary = rng.random(size=(1000, 3)) < (0.1, 0.5, 0.9)
    strength, bend = governed_spread(np.hstack([binary, rng.normal(size=(1000, 1))]))
    assert (strength == 0).all() and (bend == 0).all()
