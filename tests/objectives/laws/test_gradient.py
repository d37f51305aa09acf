"""Laws 2, 4, 6 and 9: values and gradients have the expectations that quadrature gives.

The guides do not hold the posterior, so that wrong weights show.
"""

import pytest
import torch

from pyro_elbo_lab.objectives.lower_bounds import ImportanceWeightedELBO, StandardELBO
from tests.objectives.laws import exact, toys
from tests.objectives.laws.estimation import values_and_gradients
from tests.objectives.laws.registry import (
    CASE,
    ROW,
    ROWS,
    combinations,
    expected,
)
from tests.support.tolerances import assert_mean_equals


def assert_unbiased(objective, toy, of, num_evaluations):
    values, gradients = values_and_gradients(objective, toy, num_evaluations)
    sign = objective.target.sign  # what is maximized is the value or its negative
    assert_mean_equals(sign * values, of.value)
    assert_mean_equals(sign * gradients, of.gradient)


def precise(row, gradient, **keywords):
    """The objective, and how often to evaluate it."""
    if row.averages:
        return row.build(gradient=gradient, num_outer=150, **keywords), 60
    return row.build(gradient=gradient, **keywords), 1000


@pytest.mark.parametrize(("row", "gradient", "case"), combinations())
def test_expectation(row, gradient, case):
    objective, num_evaluations = precise(row, gradient, vectorize_particles=True, **case.keywords)
    if "subsampled" in case.name:
        num_evaluations *= 4
    assert_unbiased(objective, case.toy(), expected(row.name, case.name), num_evaluations)


@pytest.mark.parametrize(
    ("row", "case"),
    [
        pytest.param(row, case, id=f"{row.name}-{case}")
        for row in ROWS
        for case in ("shared-and-local", "subsampled", "local", "nested", "joint")
        if row.weights in CASE[case].weights and case not in row.skip
    ],
)
def test_expectation_with_sequential_particles(row, case):
    if row.averages:
        objective, num_evaluations = row.build(gradient=row.gradients[0], num_outer=15), 60
    else:
        objective, num_evaluations = row.build(gradient=row.gradients[0]), 400
    assert_unbiased(objective, CASE[case].toy(), expected(row.name, case), num_evaluations)


SEPARATE = [row for row in ROWS if row.weights in ("linear", "cells")]


@pytest.mark.parametrize("row", SEPARATE, ids=lambda row: row.name)
def test_expectation_on_a_device(row, device):
    objective, num_evaluations = precise(row, row.gradients[0], vectorize_particles=True)
    toy = toys.hierarchical(device=device)
    assert_unbiased(objective, toy, expected(row.name, "shared-and-local"), num_evaluations)


def test_score_of_two_particles():
    """Where a baseline that holds the particle's own draw would halve the gradient."""
    toy, objective = toys.discrete(plate=True), StandardELBO(2, "score", vectorize_particles=True)
    assert_unbiased(objective, toy, exact.of_bound(exact.mean)(toy, 1, 1), 1500)


def test_plates_take_the_noise_of_other_cells_out_of_the_score():
    noise = {
        plate: values_and_gradients(
            StandardELBO(2, "score", vectorize_particles=True), toys.discrete(plate=plate), 400
        )[1][:, 1:].std(0)
        for plate in (True, False)
    }
    assert (noise[True] < 0.9 * noise[False]).all()


@pytest.mark.parametrize("num_particles", [3, 5])
def test_discrete_importance_weights_of_more_particles(num_particles):
    toy = toys.discrete(plate=True)
    objective = ImportanceWeightedELBO(
        num_particles, num_outer_particles=150, vectorize_particles=True
    )
    of = exact.of_bound(exact.importance)(toy, num_particles, 1)
    assert_unbiased(objective, toy, of, 60)


@pytest.mark.parametrize(
    ("row", "case"),
    [("IW", "shared-and-local"), ("chi", "joint"), ("nested 2 x 2", "nested"), ("wake", "joint")],
)
def test_quadrature_has_converged(row, case, monkeypatch):
    """To a fifth of the standard errors in this file, which are between 5e-3 and 5e-2."""
    coarse = expected(row, case).gradient
    monkeypatch.setattr(toys, "NODES", {dims: num + 2 for dims, num in toys.NODES.items()})
    entry = ROW[row]
    fine = entry.exact(CASE[case].toy(), entry.num_inner, entry.num_outer).gradient
    torch.testing.assert_close(coarse, fine, rtol=0, atol=1e-3)
