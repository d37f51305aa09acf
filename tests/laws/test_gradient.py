"""Laws 2, 4 and 6: values and gradients are unbiased for the exact expected objective.

The guides do not hold the posterior, so that wrong weights show.
"""

import pytest
import torch

from pyro_elbo_lab.analytic_kl import AnalyticKLELBO
from pyro_elbo_lab.objectives import ImportanceWeightedELBO, StandardELBO
from tests.laws import toys
from tests.laws.estimation import values_and_gradients
from tests.tolerances import assert_mean_equals

GRADIENTS = ["pathwise", "doubly_reparameterized", "score", "auto"]


def standard(gradient, **keywords):
    return 1, StandardELBO(num_particles=30, gradient=gradient, **keywords)


def importance_weighted(gradient, **keywords):
    return 2, ImportanceWeightedELBO(2, num_outer_particles=30, gradient=gradient, **keywords)


def analytic_kl(gradient, **keywords):
    assert gradient == "auto"
    return 1, AnalyticKLELBO(num_particles=30, **keywords)


def assert_unbiased(objective, num_particles, toy, num_evaluations=150):
    values, gradients = values_and_gradients(objective, toy, num_evaluations)
    assert_mean_equals(values, toy.exact(num_particles))
    assert_mean_equals(gradients, toy.exact_gradient(num_particles))


OBJECTIVES = [
    *[(standard, g) for g in GRADIENTS],
    *[(importance_weighted, g) for g in GRADIENTS],
    (analytic_kl, "auto"),
]
each_objective = pytest.mark.parametrize(
    ("build", "gradient"), OBJECTIVES, ids=[f"{b.__name__}-{g}" for b, g in OBJECTIVES]
)


@each_objective
def test_hierarchical(build, gradient, dtype, device):
    num_particles, objective = build(gradient, vectorize_particles=True)
    assert_unbiased(objective, num_particles, toys.hierarchical(dtype=dtype, device=device))


@each_objective
def test_sequential_particles(build, gradient):
    num_particles, objective = build(gradient)
    assert_unbiased(objective, num_particles, toys.hierarchical(), num_evaluations=30)


@each_objective
@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])
def test_subsampling(build, gradient, vectorize):
    num_particles, objective = build(gradient, vectorize_particles=vectorize)
    toy = toys.hierarchical(num_data=5, subsample_size=2)
    assert_unbiased(objective, num_particles, toy, num_evaluations=400 if vectorize else 60)


@each_objective
@pytest.mark.parametrize(
    "factors",
    [
        {"model_scale": 0.4},
        {"guide_scale": 0.4},
        {"model_scale": 0.4, "guide_scale": 0.4},
        {"model_mask": [True, False, True]},
        {"guide_mask": [True, False, True]},
        {"model_mask": [True, False, True], "guide_mask": [True, False, True]},
        {"model_mask": [True, False, True], "guide_scale": 0.4},
    ],
    ids=str,
)
def test_scale_and_mask(build, gradient, factors):
    num_particles, objective = build(gradient, vectorize_particles=True)
    assert_unbiased(objective, num_particles, toys.hierarchical(**factors))


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("guide_scale", [1.0, 0.4])
def test_joint_weights(gradient, guide_scale):
    toy = toys.hierarchical(num_data=1, joint=True, guide_scale=guide_scale)
    _, objective = importance_weighted(gradient, local_plates=(), vectorize_particles=True)
    assert_unbiased(objective, 2, toy)


@each_objective
@pytest.mark.parametrize("plate", [True, False], ids=["cells", "joint"])
def test_discrete(build, gradient, plate):
    if gradient in ("pathwise", "doubly_reparameterized"):
        pytest.skip("illegal for discrete latents, see test_objectives.py")
    num_particles, objective = build(gradient, vectorize_particles=True)
    assert_unbiased(objective, num_particles, toys.discrete(plate=plate))


def test_plates_take_the_noise_of_other_cells_out_of_the_score():
    noise = {
        plate: values_and_gradients(
            StandardELBO(2, "score", vectorize_particles=True), toys.discrete(plate=plate), 400
        )[1][:, 1:].std(0)
        for plate in (True, False)
    }
    assert (noise[True] < 0.9 * noise[False]).all()


@pytest.mark.parametrize("num_particles", [2, 3, 5])
def test_discrete_importance_weights_of_more_particles(num_particles):
    objective = ImportanceWeightedELBO(
        num_particles, num_outer_particles=30, vectorize_particles=True
    )
    assert_unbiased(objective, num_particles, toys.discrete(plate=True))


@each_objective
@pytest.mark.parametrize("local", [True, False], ids=["cells", "joint"])
def test_mixed(build, gradient, local):
    if gradient in ("pathwise", "doubly_reparameterized"):
        pytest.skip("illegal for the discrete latent, see test_objectives.py")
    num_particles, objective = build(gradient, vectorize_particles=True)
    assert_unbiased(objective, num_particles, toys.mixed(local=local), num_evaluations=250)


@pytest.mark.parametrize("joint", [True, False])
def test_quadrature_has_converged(joint, monkeypatch):
    """To a hundredth of the smallest standard error in this file, which is about 1e-3."""
    toy = toys.hierarchical(num_data=1, joint=joint)
    coarse = toy.exact_gradient(2)
    normal = toys.normal
    monkeypatch.setattr(toys, "normal", lambda dims, nodes, like: normal(dims, nodes + 8, like))
    torch.testing.assert_close(coarse, toy.exact_gradient(2), rtol=0, atol=2e-5)
