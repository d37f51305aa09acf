"""Signal and noise of guide and model gradients on the toy of Rainforth et al. (2018).

Measured with 1000 evaluations each (pytest -s prints it, tests.benchmarks.signal_to_noise has more
particles); K M = 64 for PIWAE. The last column is the exact slope of these K:

    signal / noise at K =             1        4       16       64      256    slope  error   exact
    IW pathwise                  0.1576   0.0919   0.0498   0.0252   0.0127   -0.457  0.001  -0.456
    IW doubly reparameterized    0.6305   0.6371   0.8054   1.3277   2.4909    0.251  0.002   0.252
    IW, model                    0.9579   1.6701   3.1477   6.0967  12.1038    0.459  0.001   0.460
    CIWAE 0.05 pathwise          0.1576   0.1027   0.0742   0.0742   0.1108   -0.074  0.001  -0.073
    CIWAE 0.5 pathwise           0.1576   0.2102   0.3434   0.6258   1.2359    0.376  0.001   0.376
    PIWAE pathwise               1.2529   0.3655   0.0986   0.0252            -0.940  0.002  -0.941
    PIWAE, model                 6.0967   6.0967   6.0967   6.0967             0.000  0.002   0.000

As K grows, the slope of the importance-weighted bound's pathwise guide gradient tends to -1/2, that
of the doubly reparameterized one and that of the model's to +1/2. At K = 256 they are -0.4985,
0.485 and 0.4985.
"""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch

from tests.objectives.laws import rainforth
from tests.objectives.laws.rainforth import BUDGET, OFFSET, PARTICLES, ROWS, WITHIN_BUDGET, D
from tests.support.tolerances import assert_mean_equals, critical_value

NUM = 1000
every_row = pytest.mark.parametrize("name", ROWS)


@cache
def measured(name: str) -> rainforth.Ratios:
    return rainforth.ratios(ROWS[name], NUM)


@every_row
@pytest.mark.parametrize("index", [0, -1], ids=["fewest", "most"])
def test_mean_and_noise_are_exact(name, index):
    row = ROWS[name]
    k = row.particles[index]
    exact, gradients = row.exact(k), rainforth.gradients(row, k, 400)
    assert_mean_equals(gradients, exact.mean)
    assert_mean_equals(((gradients - exact.mean) ** 2).sum(1), exact.variance)


@every_row
def test_slope_is_exact(name):
    slope, error = measured(name).slope
    assert error < 0.01
    assert abs(slope - rainforth.exact_slope(ROWS[name])) < critical_value() * error


def test_table():
    print("\n" + rainforth.table([measured(name) for name in ROWS]))
    slopes = {name: measured(name).slope[0] for name in ROWS}
    assert slopes["IW pathwise"] == pytest.approx(-0.456, abs=0.03)
    assert slopes["IW doubly reparameterized"] == pytest.approx(0.252, abs=0.03)
    assert slopes["IW, model"] == pytest.approx(0.460, abs=0.03)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("IW pathwise", -0.5),
        ("IW doubly reparameterized", 0.5),
        ("IW, model", 0.5),
        ("CIWAE 0.5 pathwise", 0.5),
        ("CIWAE 0.05 pathwise", 0.5),
    ],
)
def test_slope_tends_to_half(name, limit):
    """The distance from it halves where K doubles."""
    distances = [abs(rainforth.local_slope(ROWS[name], k) - limit) for k in (2048, 4096, 8192)]
    assert distances[0] < 0.02
    for before, after in pairwise(distances):
        assert after == pytest.approx(before / 2, rel=0.05, abs=1e-4)


def test_doubly_reparameterized_noise_is_a_fiftieth_of_pathwise_at_64_particles():
    by_name = {
        name: measured(name).values[PARTICLES.index(64)]
        for name in ("IW pathwise", "IW doubly reparameterized")
    }
    assert by_name["IW doubly reparameterized"] > 45 * by_name["IW pathwise"]


def test_combined_bound_lies_between():
    """IW < CIWAE 0.05 < CIWAE 0.5 < ELBO, at every K above 1 and in slope."""
    names = ["IW pathwise", "CIWAE 0.05 pathwise", "CIWAE 0.5 pathwise"]
    elbo = [measured(names[0]).values[0] * math.sqrt(k) for k in PARTICLES]
    table = [measured(name).values for name in names] + [elbo]
    for column in list(zip(*table, strict=True))[1:]:
        assert list(column) == sorted(column)
    slopes = [measured(name).slope for name in names] + [(0.5, 0.0)]
    for (low, low_error), (high, high_error) in pairwise(slopes):
        assert high - low > critical_value() * math.hypot(low_error, high_error)


def test_partial_bound_lies_between():
    """From the ELBO of K M particles at K = 1 to the importance-weighted bound of them at M = 1:
    an outer mean divides the variance, so that the slope is that of IW_K less 1/2."""
    importance, partial = measured("IW pathwise"), measured("PIWAE pathwise")
    assert WITHIN_BUDGET == PARTICLES[:4] == partial.row.particles
    for i, k in enumerate(WITHIN_BUDGET):
        expected = importance.values[i] * math.sqrt(BUDGET / k)
        error = math.hypot(importance.relative_errors[i], partial.relative_errors[i])
        assert abs(math.log(partial.values[i] / expected)) < critical_value() * error
    within = rainforth.Ratios(
        partial.row, importance.values[:4], importance.relative_errors[:4]
    ).slope
    error = math.hypot(within[1], partial.slope[1])
    assert abs(partial.slope[0] - (within[0] - 0.5)) < critical_value() * error


@pytest.mark.parametrize("num_particles", WITHIN_BUDGET)
def test_partial_bound_leaves_the_model_the_signal_of_all_particles(num_particles):
    """Its gradient is that of IW_64, draw by draw."""
    partial = rainforth.gradients(ROWS["PIWAE, model"], num_particles, 3)
    torch.testing.assert_close(partial, rainforth.gradients(ROWS["IW, model"], BUDGET, 3))


def test_closed_forms_of_one_particle():
    """Of the exact side: the ELBO's gradients."""
    pathwise = rainforth.weighted(1)
    torch.testing.assert_close(pathwise.mean, -2 * OFFSET)
    assert pathwise.variance == pytest.approx(4 * 2 / 3 * D, rel=1e-9)
    doubly = rainforth.weighted(1, doubly=True)
    torch.testing.assert_close(doubly.mean, -2 * OFFSET)
    assert doubly.variance == pytest.approx((math.sqrt(1.5) - 2 * math.sqrt(2 / 3)) ** 2 * D)
    for beta in (0.05, 0.5):
        assert rainforth.combined(1, beta).variance == pytest.approx(pathwise.variance)


@pytest.mark.parametrize("num_particles", [4, 64])
def test_both_estimators_have_the_same_exact_mean(num_particles):
    plain, doubly = (rainforth.weighted(num_particles, doubly=d) for d in (False, True))
    torch.testing.assert_close(plain.mean, doubly.mean, rtol=1e-8, atol=0)
