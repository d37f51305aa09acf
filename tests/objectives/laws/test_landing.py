"""Law 3: at the exact posterior the doubly reparameterized gradient is 0 for every draw."""

import pytest
import torch

from pyro_elbo_lab.objectives.lower_bounds import ImportanceWeightedELBO, StandardELBO
from tests.objectives.laws import toys
from tests.objectives.laws.estimation import values_and_gradients
from tests.objectives.laws.registry import ROWS

vectorized = pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])

# "auto" is doubly reparameterized where all latents are; TailAdaptive knows nothing else. The plain
# wake phase, the exact terms of a KL and the score keep their noise.
LANDING = [
    pytest.param(row, gradient, id=f"{row.name}-{gradient}")
    for row in ROWS
    for gradient in row.gradients
    if gradient in ("auto", "doubly_reparameterized") or row.name == "tail-adaptive"
]


def posterior_guide(num_data):
    """The exact posterior q(g) q(z_i | g) of `toys.hierarchical`, over learnable parameters."""
    x = torch.linspace(-1.0, 2.0, num_data, dtype=torch.float64)
    marginal = 1.0 + 0.49
    precision = 1.0 + num_data / marginal
    global_loc = (0.3 + x.sum() / marginal) / precision
    local_precision = 1.0 + 1.0 / 0.49
    return {
        "global_loc": global_loc,
        "global_log_scale": -0.5 * torch.tensor(precision, dtype=torch.float64).log(),
        "local_loc": x / 0.49 / local_precision,
        "local_slope": torch.tensor(1.0 / local_precision, dtype=torch.float64),
        "local_log_scale": -0.5 * torch.tensor(local_precision, dtype=torch.float64).log(),
    }


def at_the_posterior(**keywords):
    toy = toys.hierarchical(**keywords)
    with torch.no_grad():
        for name, optimum in posterior_guide(keywords["num_data"]).items():
            toy.parameters[name].copy_(optimum)
    return toy


def assert_lands(objective, toy, model_learns=True):
    _, gradients = values_and_gradients(objective, toy, 5)
    assert next(iter(toy.parameters)) == "theta"
    guide_gradients = gradients[:, 1:]
    torch.testing.assert_close(
        guide_gradients, torch.zeros_like(guide_gradients), atol=1e-12, rtol=0
    )
    assert (gradients[:, 0].abs().min() > 1e-3) == model_learns


@vectorized
@pytest.mark.parametrize(("row", "gradient"), LANDING)
def test_guide_gradient_vanishes_at_the_posterior_for_every_draw(row, gradient, vectorize):
    many = {"num_outer": 3} if row.averages else {}
    objective = row.build(gradient=gradient, vectorize_particles=vectorize, **many)
    assert_lands(objective, at_the_posterior(num_data=3), row.bounds != "above")


@vectorized
def test_joint_weights_land(vectorize):
    objective = ImportanceWeightedELBO(
        4, 2, "doubly_reparameterized", (), vectorize_particles=vectorize
    )
    assert_lands(objective, at_the_posterior(num_data=3))


@vectorized
@pytest.mark.parametrize(
    "weights", [{"local_plates": ()}, {"outer": "importance"}], ids=["joint", "nested"]
)
def test_scores_land(weights, vectorize):
    """Where a weight holds all latents its leave-one-out baselines take all noise away."""
    objective = ImportanceWeightedELBO(4, 2, "score", vectorize_particles=vectorize, **weights)
    assert_lands(objective, at_the_posterior(num_data=3))


@vectorized
@pytest.mark.parametrize("build", [StandardELBO, ImportanceWeightedELBO])
def test_local_gradients_vanish_at_the_posterior_under_subsampling(build, vectorize):
    """The minibatch leaves noise in the global ones."""
    toy = at_the_posterior(num_data=5, subsample_size=2)
    objective = build(4, gradient="doubly_reparameterized", vectorize_particles=vectorize)
    _, gradients = values_and_gradients(objective, toy, 5)
    local = gradients[:, 3:]  # after theta and the two of the global latent
    torch.testing.assert_close(local, torch.zeros_like(local), atol=1e-12, rtol=0)
    assert gradients[:, 1].abs().max() > 1e-3


def test_pathwise_gradient_does_not_vanish_at_the_posterior():
    toy = at_the_posterior(num_data=3)
    _, gradients = values_and_gradients(StandardELBO(3, "pathwise"), toy, 5)
    assert gradients[:, 1:].abs().max() > 0.1
