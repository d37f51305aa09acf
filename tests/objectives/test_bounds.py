"""Bounds on vectors, without Pyro."""

import math

import pytest
import torch

from pyro_elbo_lab.objectives.bounds import (
    chi,
    combined,
    derivatives,
    jackknife,
    leave_one_out,
    log_mean_exp,
    log_uniform_schedule,
    mean,
    renyi,
    thermodynamic,
)
from pyro_elbo_lab.objectives.smoothness import has_kinks

BOUNDS = {"mean": mean, "log_mean_exp": log_mean_exp}
every_bound = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
LOG_WEIGHTS = torch.tensor([[0.3, -1.0], [1.2, 4.0], [-0.7, 0.0]], dtype=torch.float64)


@every_bound
def test_constant_weights_give_their_value(bound):
    torch.testing.assert_close(bound(torch.full((5, 2), 1.7)), torch.full((2,), 1.7))


@every_bound
def test_adding_a_constant_adds_it(bound):
    torch.testing.assert_close(bound(LOG_WEIGHTS + 3.0), bound(LOG_WEIGHTS) + 3.0)


def test_order():
    assert (mean(LOG_WEIGHTS) < log_mean_exp(LOG_WEIGHTS)).all()


def test_extreme_weights_do_not_overflow():
    value = log_mean_exp(torch.tensor([1000.0, -1000.0]))
    assert value.item() == pytest.approx(1000 - math.log(2))
    assert log_mean_exp(torch.tensor([-math.inf, 0.0])).item() == pytest.approx(-math.log(2))


@every_bound
def test_derivatives_against_the_full_hessian(bound):
    slope, curvature = derivatives(bound, LOG_WEIGHTS)
    for column in range(2):
        weights = LOG_WEIGHTS[:, column]
        gradient = torch.func.grad(bound)(weights)
        hessian = torch.func.hessian(bound)(weights)
        torch.testing.assert_close(slope[:, column], gradient)
        torch.testing.assert_close(curvature[:, column], hessian.diagonal())


@every_bound
def test_leave_one_out_by_hand(bound):
    values, slopes = leave_one_out(bound, LOG_WEIGHTS)
    for k in range(3):
        replaced = LOG_WEIGHTS.clone()
        replaced[k] = LOG_WEIGHTS[[i for i in range(3) if i != k]].mean(0)
        torch.testing.assert_close(values[k], bound(replaced))
        torch.testing.assert_close(slopes[k], derivatives(bound, replaced)[0][k])


@every_bound
def test_leave_one_out_does_not_depend_on_the_one(bound):
    moved = LOG_WEIGHTS.clone()
    moved[1] += 5.0
    for one, other in zip(
        leave_one_out(bound, LOG_WEIGHTS), leave_one_out(bound, moved), strict=True
    ):
        torch.testing.assert_close(one[1], other[1])
        assert not torch.allclose(one[0], other[0]) or bound is mean


@every_bound
def test_single_particle_has_no_baseline(bound):
    values, slopes = leave_one_out(bound, LOG_WEIGHTS[:1])
    assert (values == 0).all() and (slopes == 1).all()


SMOOTH = {
    "renyi": renyi(0.5),
    "chi": chi(4),
    "combined": combined(0.3),
    "left sum": thermodynamic(log_uniform_schedule(5, 0.01)),
    "right sum": thermodynamic((0.0, 0.5, 1.0), right=True),
    "jackknife": jackknife(1),
    "variance": lambda log_weights: log_weights.mean(0) - log_weights.var(0),
}
KINKED = {
    "minimum": lambda log_weights: log_weights.amin(0),
    "median": lambda log_weights: log_weights.median(0).values,
    "quantile": lambda log_weights: log_weights.quantile(0.9, dim=0),
    "clipped": lambda log_weights: log_mean_exp(
        log_weights.minimum(log_mean_exp(log_weights) + math.log(len(log_weights)) / 2)
    ),
}


@pytest.mark.parametrize("num_particles", [2, 5, 16, 200])
def test_kinks(num_particles):
    assert [name for name, bound in SMOOTH.items() if has_kinks(bound, num_particles)] == []
    assert [name for name, bound in KINKED.items() if not has_kinks(bound, num_particles)] == []
