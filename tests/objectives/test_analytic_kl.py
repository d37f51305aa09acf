"""Routes of the analytic KL: which are taken, that they are exact, and where they are illegal."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch.distributions import kl_divergence

from pyro_elbo_lab.objectives.analytic_kl import AnalyticKLELBO
from pyro_elbo_lab.objectives.lower_bounds import StandardELBO
from tests.objectives.laws.estimation import guide_gradients, mean_loss
from tests.support.tolerances import assert_means_equal

EYE = torch.eye(3)
ONES = torch.ones(3)
PAIRS = {
    "normal": (dist.Normal(0.3, 0.7), dist.Normal(0.0, 1.0)),
    "independent-mvn": (
        dist.Normal(0.3 * ONES, 0.7).to_event(1),
        dist.MultivariateNormal(ONES, EYE),
    ),
    "mvn": (dist.MultivariateNormal(0 * ONES, 2 * EYE), dist.MultivariateNormal(ONES, EYE + 0.1)),
    "gamma": (dist.Gamma(2.0, 3.0), dist.Gamma(1.0, 1.0)),
    "dirichlet": (dist.Dirichlet(2 * ONES), dist.Dirichlet(ONES)),
    "beta": (dist.Beta(2.0, 3.0), dist.Beta(1.0, 1.0)),
    "bernoulli": (dist.Bernoulli(0.3), dist.Bernoulli(0.5)),
    "categorical": (dist.Categorical(ONES), dist.Categorical(torch.tensor([0.2, 0.3, 0.5]))),
}


@pytest.mark.parametrize(("q", "p"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])
def test_pairs_have_their_exact_kl_at_every_draw(q, p, vectorize):
    def model():
        with pyro.plate("data", 2):
            pyro.sample("z", p)

    def guide():
        with pyro.plate("data", 2):
            pyro.sample("z", q)

    objective = AnalyticKLELBO(3, vectorize_particles=vectorize)
    expected = 2 * kl_divergence(q, p).item()
    assert objective.loss(model, guide) == pytest.approx(expected, rel=1e-5)
    assert objective.explain(model, guide)["z"].kl == "exact KL"


def hierarchy():
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(share, scale))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor([1.0, -0.5, 2.0]))


@pytest.mark.parametrize(
    ("autoguide", "routes"),
    [
        (
            AutoNormal,
            {
                "scale_unconstrained": "exact entropy",
                "share_unconstrained": "exact entropy",
                "z_unconstrained": "exact KL",
            },
        ),
        (AutoDiagonalNormal, {"_AutoDiagonalNormal_latent": "exact entropy"}),
        (AutoMultivariateNormal, {"_AutoMultivariateNormal_latent": "exact entropy"}),
        (AutoLowRankMultivariateNormal, {"_AutoLowRankMultivariateNormal_latent": "exact entropy"}),
    ],
)
def test_autoguides(autoguide, routes):
    guide = autoguide(hierarchy)
    guide()
    analytic = AnalyticKLELBO(20, vectorize_particles=True)
    explanation = analytic.explain(hierarchy, guide)
    assert {name: explanation[name].kl for name in routes} == routes
    trace = Trace_ELBO(20, vectorize_particles=True, max_plate_nesting=1)
    pyro.set_rng_seed(0)
    assert_means_equal(
        mean_loss(lambda: analytic.loss(hierarchy, guide), 200),
        mean_loss(lambda: trace.loss(hierarchy, guide), 200),
    )


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal])
def test_gradient_on_positive_support_where_pyros_is_biased(autoguide):
    def model():
        pyro.sample(
            "x", dist.Poisson(pyro.sample("rate", dist.Gamma(2.0, 1.0))), obs=torch.tensor(4.0)
        )

    guide = autoguide(model, init_scale=0.5)
    guide()
    pyro.set_rng_seed(0)
    keywords = {"num_particles": 20, "vectorize_particles": True, "max_plate_nesting": 0}
    expected = guide_gradients(Trace_ELBO(**keywords), model, guide, 300)
    assert_means_equal(guide_gradients(AnalyticKLELBO(**keywords), model, guide, 300), expected)
    with pytest.raises(AssertionError, match="means disagree"):
        biased = guide_gradients(TraceMeanField_ELBO(**keywords), model, guide, 300)
        assert_means_equal(biased, expected)


@pytest.mark.parametrize("on_model", [0.3, None, torch.tensor([True, False, True])])
@pytest.mark.parametrize("on_guide", [0.3, None, torch.tensor([True, True, False])])
def test_scale_and_mask_of_one_side_only(on_model, on_guide):
    def changed(how):
        if how is None:
            return poutine.scale(scale=1.0)
        return poutine.mask(mask=how) if isinstance(how, torch.Tensor) else poutine.scale(scale=how)

    def model():
        with pyro.plate("data", 3), changed(on_model):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        with pyro.plate("data", 3), changed(on_guide):
            pyro.sample("z", dist.Normal(torch.tensor([0.5, -0.3, 1.0]), 0.6))

    pyro.set_rng_seed(0)
    keywords = {"num_particles": 50, "vectorize_particles": True, "max_plate_nesting": 1}
    trace, analytic = Trace_ELBO(**keywords), AnalyticKLELBO(**keywords)
    exact = analytic.loss(model, guide)
    assert analytic.loss(model, guide) == exact
    samples = mean_loss(lambda: trace.loss(model, guide), 300)
    assert_means_equal(samples, torch.full((2,), exact))


def test_parent_drawn_after_its_child_is_no_exact_kl():
    """In the guide a depends on b, in the model b depends on a: KL(q(b) || p(b | a)) at the drawn
    a is not the expectation over b."""

    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a, 0.5))

    def guide():
        b = pyro.sample("b", dist.Normal(0.4, 0.8))
        pyro.sample("a", dist.Normal(0.7 * b, 0.6))

    pyro.set_rng_seed(0)
    keywords = {"num_particles": 50, "vectorize_particles": True, "max_plate_nesting": 0}
    analytic = AnalyticKLELBO(**keywords)
    explanation = analytic.explain(model, guide)
    assert explanation["b"].kl == "exact entropy"
    assert "'b' depends on 'a'" in explanation["b"].why
    assert explanation["a"].kl == "exact KL"
    trace = Trace_ELBO(**keywords)
    assert_means_equal(
        mean_loss(lambda: analytic.loss(model, guide), 400),
        mean_loss(lambda: trace.loss(model, guide), 400),
    )


def test_site_order_alone_does_not_forbid_an_exact_kl():
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("b", dist.Normal(1.0, 1.0))
        pyro.sample("a", dist.Normal(1.0, 1.0))

    assert AnalyticKLELBO().loss(model, guide) == pytest.approx(1.0)


def test_rectified_draw_is_not_taken_for_the_draw():
    def model():
        pyro.sample("z", dist.Normal(0.0, 10.0))

    def guide():
        u = pyro.sample("u", dist.Normal(50.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u.relu()))

    assert AnalyticKLELBO().explain(model, guide)["u"].kl == "exact entropy"


def test_fallbacks_are_named():
    def model():
        pyro.sample("t", dist.StudentT(3.0, 0.0, 1.0))
        pyro.sample("m", mixture)

    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-1.0, 1.0]), 1.0)
    )

    def guide():
        pyro.sample("t", dist.Normal(0.0, 1.0))
        pyro.sample("m", mixture)

    explanation = AnalyticKLELBO().explain(model, guide)
    assert explanation["t"].kl == "exact entropy"
    assert "no exact KL(Normal || StudentT)" in explanation["t"].why
    assert explanation["m"].kl == "Monte Carlo"
    assert "MixtureSameFamily has no exact entropy" in explanation["m"].why
    assert "exact entropy" in str(explanation)


def test_own_kl_term_has_no_noise():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = AutoNormal(model, init_scale=0.5)
    guide()
    pathwise = StandardELBO(gradient="pathwise")
    assert guide_gradients(AnalyticKLELBO(), model, guide, 20).std(0).max() == 0
    assert guide_gradients(pathwise, model, guide, 20).std(0).min() > 0.05
    exact = kl_divergence(dist.Normal(0.0, 0.5), dist.Normal(0.0, 1.0)).item()
    assert AnalyticKLELBO().loss(model, guide) == pytest.approx(exact, rel=1e-5)
