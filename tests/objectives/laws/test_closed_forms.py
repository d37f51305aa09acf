"""Every bound on the conjugate model z ~ N(0, 1), x | z ~ N(z, 1/2), x = 1.3, q = N(0.2, 0.6).

0.5 and 0.6 are variances. With weights w = p(x, z) / q(z) and l = log w, everything is an integral
over z, also at a finite number K of particles: for positive u_k that are independent and alike,

    E log sum_k u_k              = integral over t of (exp(-t) - phi(t)^K) / t
    E sum_k u_k l_k / sum_k u_k  = integral over t of K E[u l exp(-t u)] phi(t)^(K - 1)

with phi(t) = E exp(-t u). Both follow from 1 / s = integral of exp(-t s).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO as PyroRenyiELBO
from pyro.infer import ReweightedWakeSleep as PyroReweightedWakeSleep
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_elbo_lab import (
    AnalyticKLELBO,
    ChiUpperBound,
    ForwardKL,
    ImportanceWeightedELBO,
    JackknifeELBO,
    Objective,
    RenyiELBO,
    ReweightedWakeSleep,
    StandardELBO,
    ThermodynamicELBO,
    log_uniform_schedule,
    uniform_schedule,
)
from pyro_elbo_lab.objectives import bounds as library
from tests.objectives.laws import toys
from tests.objectives.laws.estimation import mean_loss, values_and_gradients
from tests.support.tolerances import assert_mean_equals, critical_value

Z = torch.linspace(-8.0, 8.0, 801, dtype=torch.float64)
STEP = Z[1] - Z[0]
LOG_Q = toys.log_normal(Z, 0.2, math.sqrt(0.6))
LOG_W = (
    toys.log_normal(Z, 0.0, 1.0)
    + toys.log_normal(torch.tensor(1.3, dtype=torch.float64), Z, math.sqrt(0.5))
    - LOG_Q
)
U = torch.arange(-45.0, 70.0, 0.1, dtype=torch.float64)  # log t


def average(values: Tensor) -> Tensor:
    """E_q, over the last dimension."""
    return (values * LOG_Q.exp()).sum(-1) * STEP


@cache
def laplace(power: float, *, weighted: bool = False) -> Tensor:
    """E[exp(-t u)] at every t with u = w^power; weighted, E[u l exp(-t u)]."""
    rate = (U[:, None] + power * LOG_W).exp()
    factor = (power * LOG_W).exp() * LOG_W if weighted else torch.ones_like(LOG_W)
    return average(factor * (-rate).exp())


@dataclass(frozen=True)
class Truth:
    """A bound as K grows, and before.

    Attributes:
        limit: K -> infinity.
        slope: of the bias in 1 / K, by the delta method.
        at: the exact expectation with K particles.
    """

    limit: float
    slope: float
    at: Callable[[int], float]


def log_power(power: float) -> Truth:
    """log mean_k w^power / power: bias -(E[w^(2 power)] / E[w^power]^2 - 1) / (2 power K)."""
    first, second = average((power * LOG_W).exp()), average((2 * power * LOG_W).exp())

    def at(num_particles: int) -> float:
        remaining = laplace(power) ** num_particles
        log_sum = (((-U.exp()).exp() - remaining) * 0.1).sum()
        return (log_sum.item() - math.log(num_particles)) / power

    slope = -(second / first**2 - 1) / (2 * power)
    return Truth(first.log().item() / power, slope.item(), at)


def tempered(pairs: list[tuple[float, float]]) -> Truth:
    """sum of width * E_beta[l] over pairs (width, beta), by self-normalized weights u = w^beta:
    bias -E[u^2 (l - mean)] / (E[u]^2 K) each."""
    limit = slope = 0.0
    for width, beta in pairs:
        u = (beta * LOG_W).exp()
        center = average(u * LOG_W) / average(u)
        limit += width * center.item()
        slope -= width * (average(u**2 * (LOG_W - center)) / average(u) ** 2).item()

    def at(num_particles: int) -> float:
        total = 0.0
        for width, beta in pairs:
            remaining = laplace(beta) ** (num_particles - 1)
            integral = (U.exp() * laplace(beta, weighted=True) * remaining * 0.1).sum()
            total += width * num_particles * integral.item()
        return total

    return Truth(limit, slope, at)


def thermodynamic(schedule: tuple[float, ...], side: str) -> Truth:
    return tempered(
        [(high - low, low if side == "left" else high) for low, high in pairwise(schedule)]
    )


LOG_UNIFORM = log_uniform_schedule(5, 0.02)
ELBO, IMPORTANCE, RENYI, CHI = tempered([(1.0, 0.0)]), log_power(1.0), log_power(0.5), log_power(2)
EUBO = tempered([(1.0, 1.0)])
LEFT, RIGHT = (thermodynamic(uniform_schedule(5), side) for side in ("left", "right"))
LOG_LEFT, LOG_RIGHT = (thermodynamic(LOG_UNIFORM, side) for side in ("left", "right"))
LOG_EVIDENCE = IMPORTANCE.limit
CHI_SQUARED = average((2 * LOG_W).exp()).item() / math.exp(2 * LOG_EVIDENCE) - 1


@dataclass(frozen=True)
class Row:
    """An objective (K, M) -> Objective of a truth."""

    name: str
    build: Callable[[int, int], Objective]
    truth: Truth
    sign: int = 1


FAST: dict[str, Any] = {"vectorize_particles": True}
ROWS = [
    Row("ELBO", lambda k, m: StandardELBO(k * m, **FAST), ELBO),
    Row("analytic KL", lambda k, m: AnalyticKLELBO(k * m, **FAST), ELBO),
    Row("IW", lambda k, m: ImportanceWeightedELBO(k, m, **FAST), IMPORTANCE),
    Row("Renyi 0.5", lambda k, m: RenyiELBO(0.5, k, num_outer=m, **FAST), RENYI),
    Row("chi", lambda k, m: ChiUpperBound(k, num_outer=m, **FAST), CHI, -1),
    Row("forward KL", lambda k, m: ForwardKL(k, num_outer=m, **FAST), EUBO, -1),
    Row("TVO left", lambda k, m: ThermodynamicELBO(k, num_outer=m, **FAST), LEFT),
    Row(
        "TVO right",
        lambda k, m: ThermodynamicELBO(k, side="right", num_outer=m, **FAST),
        RIGHT,
        -1,
    ),
    Row(
        "TVO left, log-uniform",
        lambda k, m: ThermodynamicELBO(k, LOG_UNIFORM, num_outer=m, **FAST),
        LOG_LEFT,
    ),
    Row(
        "TVO right, log-uniform",
        lambda k, m: ThermodynamicELBO(k, LOG_UNIFORM, "right", num_outer=m, **FAST),
        LOG_RIGHT,
        -1,
    ),
]
vectorized = pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def model():
    x = torch.tensor(1.3, dtype=torch.float64)
    z = pyro.sample("z", dist.Normal(0 * x, 0 * x + 1))
    pyro.sample("x", dist.Normal(z, (0 * x + 0.5).sqrt()), obs=x)


def guide():
    one = torch.ones((), dtype=torch.float64)
    pyro.sample("z", dist.Normal(0.2 * one, (0.6 * one).sqrt()))


def estimates(objective, num_evaluations, sign=1):
    return -sign * mean_loss(lambda: objective.loss(model, guide), num_evaluations)


@pytest.mark.parametrize(
    ("published", "derived"),
    [
        (-1.685004, LOG_EVIDENCE),
        (-1.685004, toys.log_normal(torch.tensor(1.3), 0.0, math.sqrt(1.5)).item()),
        (-2.457778, ELBO.limit),
        (-1.242963, EUBO.limit),
        (-1.965679, RENYI.limit),
        (-1.373579, CHI.limit),
        (-1.813811, LEFT.limit),
        (-1.570848, RIGHT.limit),
    ],
)
def test_quadrature_gives_the_published_numbers(published, derived):
    assert derived == pytest.approx(published, abs=1e-6)


def test_importance_weighted_bound_of_five():
    """Published as -1.7885(6), from a simulation."""
    assert abs(IMPORTANCE.at(5) + 1.7885) < critical_value() * 6e-4


def test_closed_form_of_the_elbo():
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.6)
    prior = -0.5 * (0.2**2 + 0.6) - 0.5 * math.log(2 * math.pi)
    likelihood = -0.5 * ((1.3 - 0.2) ** 2 + 0.6) / 0.5 - 0.5 * math.log(2 * math.pi * 0.5)
    assert ELBO.limit == pytest.approx(entropy + prior + likelihood, abs=1e-12)
    assert ELBO.at(3) == pytest.approx(ELBO.limit, abs=1e-9)


@pytest.mark.parametrize("num_particles", [1, 2])
def test_integrals_over_t_at_few_particles(num_particles):
    """One particle gives the ELBO; of two, the outer sum over a grid is feasible."""
    if num_particles == 1:
        assert IMPORTANCE.at(1) == pytest.approx(ELBO.limit, abs=1e-9)
        assert EUBO.at(1) == pytest.approx(ELBO.limit, abs=1e-9)
        return
    pair = torch.stack(torch.broadcast_tensors(LOG_W[:, None], LOG_W))
    for bound, truth in (
        (pair.logsumexp(0) - math.log(2), IMPORTANCE),
        ((pair.softmax(0) * pair).sum(0), EUBO),
    ):
        assert truth.at(2) == pytest.approx(average(average(bound)).item(), abs=1e-9)


@every_row
@pytest.mark.parametrize("num_particles", [5, 64])
def test_expectation_of_few_particles(row, num_particles):
    """Exact at every K: no bias to allow for."""
    objective = row.build(num_particles, 20_000 // num_particles)
    assert_mean_equals(estimates(objective, 30, row.sign), row.truth.at(num_particles))


@every_row
def test_limit_of_many_particles(row):
    """With K = 2^17 the bias is a tenth of the standard error of 30 evaluations at most."""
    num_particles = 2**17
    values = estimates(row.build(num_particles, 1), 30, row.sign)
    standard_error = values.std().item() / math.sqrt(len(values))
    assert abs(row.truth.slope) / num_particles <= standard_error / 10
    assert_mean_equals(values, row.truth.limit)


@every_row
def test_bias_falls_as_the_delta_method_says(row):
    """limit + slope / K + O(1 / K^2): what remains falls to a quarter where K doubles."""
    remainders = [row.truth.at(k) - row.truth.limit - row.truth.slope / k for k in (128, 256, 512)]
    if row.truth is ELBO:
        assert max(map(abs, remainders)) < 1e-9
        return
    for before, after in pairwise(remainders):
        assert before / after == pytest.approx(4, abs=0.6)


def test_importance_weighted_bound_expands_in_chi_squared():
    """E[IW_K] = log Z - chi^2 / (2 K) + O(1 / K^2)."""
    assert IMPORTANCE.slope == pytest.approx(-CHI_SQUARED / 2, rel=1e-12)
    second = [(IMPORTANCE.at(k) - LOG_EVIDENCE) * k**2 + CHI_SQUARED / 2 * k for k in (200, 400)]
    assert second[0] == pytest.approx(second[1], rel=0.1)


@pytest.mark.parametrize("num_particles", [5, 20])
def test_jackknife_of_the_first_order(num_particles):
    """K IW_K - (K - 1) IW_{K-1}: no bound, and much closer to log p(x)."""
    k = num_particles
    expected = k * IMPORTANCE.at(k) - (k - 1) * IMPORTANCE.at(k - 1)
    objective = JackknifeELBO(k, num_outer=20_000 // k, **FAST)
    assert_mean_equals(estimates(objective, 30), expected)
    assert abs(expected - LOG_EVIDENCE) < 0.4 * abs(IMPORTANCE.at(k) - LOG_EVIDENCE)


def test_jackknife_of_the_second_order():
    k = 5
    parts = [IMPORTANCE.at(k - j) * (k - j) ** 2 for j in range(3)]
    expected = parts[0] / 2 - parts[1] + parts[2] / 2
    objective = JackknifeELBO(k, order=2, num_outer=4000, **FAST)
    assert_mean_equals(estimates(objective, 30), expected)


def test_order_of_the_bounds():
    assert ELBO.limit < LEFT.limit < LOG_EVIDENCE < RIGHT.limit < EUBO.limit
    assert ELBO.limit < LOG_LEFT.limit < LOG_EVIDENCE < LOG_RIGHT.limit < EUBO.limit
    assert ELBO.limit < RENYI.limit < LOG_EVIDENCE < CHI.limit
    rising = [ELBO.limit, *[IMPORTANCE.at(k) for k in (2, 3, 5, 20, 100)], LOG_EVIDENCE]
    assert rising == sorted(rising)


@pytest.mark.parametrize("num_particles", [2, 5, 20])
def test_order_of_the_bounds_at_the_same_number_of_particles(num_particles):
    k = num_particles
    chain = [ELBO.limit, RENYI.at(k), IMPORTANCE.at(k), LOG_EVIDENCE]
    assert chain == sorted(chain)
    assert ELBO.limit < LEFT.at(k) < IMPORTANCE.at(k) < RIGHT.at(k) < EUBO.at(k)
    assert IMPORTANCE.at(k) < CHI.at(k)


@pytest.mark.parametrize("schedule", [uniform_schedule(5), uniform_schedule(1), LOG_UNIFORM])
def test_order_of_the_bounds_at_every_draw(schedule):
    """On log-weights of any spread: where the objectives are ordered, each draw is."""
    log_w = torch.randn(7, 2000, dtype=torch.float64) * torch.linspace(
        0.01, 30, 2000, dtype=torch.float64
    )
    left, right = (library.thermodynamic(schedule, right=right)(log_w) for right in (False, True))
    ordered = [
        log_w.amin(0),
        library.mean(log_w),
        left,
        library.log_mean_exp(log_w),
        right,
        library.self_normalized(log_w),
        log_w.amax(0),
    ]
    for lower, upper in pairwise(ordered):
        assert (lower <= upper + 1e-12 * log_w.abs().amax(0)).all()
    powers = [library.renyi(alpha)(log_w) for alpha in (3.0, 1.0, 0.5, 0.0, -1.0, -4.0)]
    for lower, upper in pairwise(powers):
        assert (lower <= upper + 1e-12 * log_w.abs().amax(0)).all()


@pytest.mark.parametrize("gradient", ["pathwise", "doubly_reparameterized", "score"])
@pytest.mark.parametrize(
    ("alpha", "same"),
    [
        (0.0, lambda **keywords: ImportanceWeightedELBO(5, **keywords)),
        (1.0, lambda **keywords: StandardELBO(5, **keywords)),
    ],
    ids=["importance", "elbo"],
)
@vectorized
def test_ends_of_the_renyi_family(alpha, same, gradient, vectorize):
    """Value and gradient are the same numbers under the same seed."""
    toy = toys.hierarchical()
    keywords = {"gradient": gradient, "vectorize_particles": vectorize}
    found = values_and_gradients(RenyiELBO(alpha, 5, **keywords), toy, 3)
    expected = values_and_gradients(same(**keywords), toy, 3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@vectorized
def test_renyi_equals_pyros_with_joint_weights(vectorize):
    """In value, on a model with shared and local latents."""
    toy = toys.hierarchical()
    keywords = {"vectorize_particles": vectorize, "max_plate_nesting": 1}
    ours = RenyiELBO(0.5, 4, local_plates=(), **keywords)
    theirs = PyroRenyiELBO(alpha=0.5, num_particles=4, **keywords)
    found, expected = (values_and_gradients(o, toy, 3)[0] for o in (ours, theirs))
    torch.testing.assert_close(found, expected)


class _Summed(PyroReweightedWakeSleep):
    """Pyro's returns the losses of model and guide apart."""

    def loss_and_grads(self, *args, **kwargs):
        return sum(super().loss_and_grads(*args, **kwargs))


class _Detached(Messenger):
    """Cuts every draw from the graph as it is made."""

    def _pyro_post_sample(self, msg):
        msg["value"] = msg["value"].detach()


def wake_gradients(objective, toy):
    return values_and_gradients(objective, toy, 3)[1]


@vectorized
@pytest.mark.parametrize(
    "toy",
    [toys.hierarchical(), toys.local(), toys.discrete(plate=True), toys.mixed(local=False)],
    ids=["hierarchical", "local", "discrete", "mixed"],
)
def test_wake_sleep_equals_pyros_with_joint_weights(toy, vectorize):
    """The gradients in the parameters of model and guide.

    Pyro's wake phase leaves open the path through a draw to the log q of what is drawn after it, so
    that it gets a guide whose draws are cut as they are made.
    """
    keywords = {"vectorize_particles": vectorize, "max_plate_nesting": 1}
    found = wake_gradients(ReweightedWakeSleep(4, "wake", local_plates=(), **keywords), toy)
    expected = wake_gradients(_Summed(4, **keywords), replace(toy, guide=_Detached()(toy.guide)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("toy", [toys.local(), toys.discrete(plate=False)])
def test_wake_sleep_equals_pyros_where_no_draw_depends_on_another(toy):
    keywords = {"vectorize_particles": True, "max_plate_nesting": 1}
    found = wake_gradients(ReweightedWakeSleep(4, "wake", local_plates=(), **keywords), toy)
    torch.testing.assert_close(found, wake_gradients(_Summed(4, **keywords), toy))
