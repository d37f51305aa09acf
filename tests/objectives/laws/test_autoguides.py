"""Law 2 for Pyro's autoguides: every estimator has the mean of the pathwise one.

The pathwise gradient is that of the value itself; its mean is the reference here because the
objectives of these guides cannot be integrated by hand.
"""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import block_autoregressive
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoHierarchicalNormalMessenger,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
    AutoNormalMessenger,
    AutoRegressiveMessenger,
    AutoStructured,
    init_to_feasible,
)

from pyro_elbo_lab.objectives.analytic_kl import AnalyticKLELBO
from pyro_elbo_lab.objectives.lower_bounds import ImportanceWeightedELBO, StandardELBO
from tests.objectives.laws.estimation import guide_gradients, mean_loss
from tests.support.tolerances import assert_means_equal

X = torch.tensor([0.3, -1.2, 2.8])


def model():
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(0.0, scale))
        pyro.sample("x", dist.Normal(z, 0.7), obs=X)


AUTOGUIDES = {
    "normal": lambda: AutoNormal(model, init_scale=0.6),
    "diagonal": lambda: AutoDiagonalNormal(model, init_scale=0.6),
    "mvn": lambda: AutoMultivariateNormal(model, init_scale=0.6),
    "low-rank": lambda: AutoLowRankMultivariateNormal(model, init_scale=0.6),
    "iaf": lambda: AutoIAFNormal(model, hidden_dim=[8]),
    "block-autoregressive": lambda: AutoNormalizingFlow(model, block_autoregressive),
    "messenger": lambda: AutoNormalMessenger(model, init_loc_fn=init_to_feasible, init_scale=0.6),
    "hierarchical-messenger": lambda: AutoHierarchicalNormalMessenger(
        model, init_loc_fn=init_to_feasible, init_scale=0.6
    ),
    "autoregressive-messenger": lambda: AutoRegressiveMessenger(model),
    "structured": lambda: AutoStructured(
        model,
        conditionals={"scale": "normal", "z": "mvn"},
        dependencies={"z": {"scale": "linear"}},
        init_scale=0.6,
    ),
}
OBJECTIVES = {
    "standard": lambda gradient: StandardELBO(20, gradient, vectorize_particles=True),
    "cells": lambda gradient: ImportanceWeightedELBO(3, 20, gradient, vectorize_particles=True),
    "joint": lambda gradient: ImportanceWeightedELBO(3, 20, gradient, (), vectorize_particles=True),
}


def prepared(build):
    pyro.set_rng_seed(0)
    guide = build()
    guide()
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return guide


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("build", AUTOGUIDES.values(), ids=AUTOGUIDES)
def test_auto_has_the_mean_of_pathwise(build, objective):
    guide = prepared(build)
    expected = guide_gradients(objective("pathwise"), model, guide, 300)
    assert_means_equal(guide_gradients(objective("auto"), model, guide, 300), expected)


@pytest.mark.parametrize("build", AUTOGUIDES.values(), ids=AUTOGUIDES)
def test_analytic_kl_has_the_mean_of_pathwise(build):
    guide = prepared(build)
    expected = guide_gradients(
        StandardELBO(20, "pathwise", vectorize_particles=True), model, guide, 300
    )
    assert_means_equal(
        guide_gradients(AnalyticKLELBO(20, vectorize_particles=True), model, guide, 300), expected
    )


@pytest.mark.parametrize("flow", ["iaf", "block-autoregressive"])
def test_flow_without_a_good_inverse_is_pathwise_and_says_so(flow):
    guide = prepared(AUTOGUIDES[flow])
    row = StandardELBO().explain(model, guide).rows[0]
    assert row.gradient == "pathwise"
    assert "reliable only at its last draw" in row.why
    for gradient in ("doubly_reparameterized", "score"):
        with pytest.raises(ValueError, match="reliable only at its last draw"):
            StandardELBO(gradient=gradient).loss(model, guide)


@pytest.mark.parametrize("build", AUTOGUIDES.values(), ids=AUTOGUIDES)
def test_sequential_particles_score_as_vectorized_ones(build):
    guide = prepared(build)
    sequential = StandardELBO(20)
    vectorized = StandardELBO(20, vectorize_particles=True)
    assert_means_equal(
        mean_loss(partial(sequential.loss, model, guide), 30),
        mean_loss(partial(vectorized.loss, model, guide), 30),
    )
    assert sum(guide_gradients(sequential, model, guide, 1)[0] != 0) > 0


def test_conditional_flow_with_inverse():
    """q(z | scale) is an affine flow of a base that depends on an upstream draw."""
    loc = torch.nn.Parameter(torch.tensor(0.3))
    factor = torch.nn.Parameter(torch.tensor(0.4))

    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc, self.factor = loc, factor

        def forward(self):
            scale = pyro.sample("scale", dist.LogNormal(self.loc, 0.3))
            shift = dist.transforms.AffineTransform(self.loc, self.factor.exp(), cache_size=1)
            with pyro.plate("data", 3):
                base = dist.Normal(self.factor * scale, 1.0)
                pyro.sample("z", dist.TransformedDistribution(base, [shift]))

    pyro.set_rng_seed(0)
    guide = Guide()
    for objective in OBJECTIVES.values():
        expected = guide_gradients(objective("pathwise"), model, guide, 300)
        assert_means_equal(
            guide_gradients(objective("doubly_reparameterized"), model, guide, 300), expected
        )
