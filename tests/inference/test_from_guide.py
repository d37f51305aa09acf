"""Draws of a guide as ArviZ data."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal

from models import linear_regression
from pyro_elbo_lab.inference.trees.convert import from_guide

X = torch.tensor([0.3, -1.2, 0.8])


def model(x=X):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("row", 3):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), scale.unsqueeze(-1)).to_event(1))
        pyro.deterministic("first", z[..., 0], event_dim=0)
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)
    pyro.deterministic("constant", torch.tensor(3.0))


@pytest.fixture(params=[AutoNormal, AutoMultivariateNormal])
def tree(request):
    guide = request.param(model)
    guide(X)
    pyro.set_rng_seed(0)
    return from_guide(guide, model, X, num_samples=50)


def test_groups_and_dimensions(tree):
    posterior = tree["posterior"]
    assert set(posterior.data_vars) == {"scale", "z", "first", "constant"}
    assert posterior["z"].dims == ("chain", "draw", "row", "z_dim_0")
    assert posterior["first"].dims == ("chain", "draw", "row")
    assert posterior["scale"].shape == posterior["constant"].shape == (1, 50)
    assert (posterior["scale"] > 0).all()
    assert posterior["scale"].dtype == np.float32
    np.testing.assert_array_equal(tree["observed_data"]["x"], X)


def test_deterministic_sites_follow_their_draws(tree):
    posterior = tree["posterior"]
    np.testing.assert_array_equal(posterior["first"], posterior["z"][..., 0])
    assert (posterior["constant"] == 3.0).all()


def test_log_p_is_the_models_density_at_the_draws(tree):
    z = torch.from_numpy(tree["posterior"]["z"].values[0])
    scale = torch.from_numpy(tree["posterior"]["scale"].values[0])
    log_p = dist.LogNormal(0.0, 0.5).log_prob(scale)
    log_p = log_p + dist.Normal(0.0, scale[:, None, None]).log_prob(z).sum((-1, -2))
    log_p = log_p + dist.Normal(z.sum(-1), 1.0).log_prob(X).sum(-1)
    np.testing.assert_allclose(tree["sample_stats"]["log_p"][0], log_p, rtol=1e-5)
    stats = tree["sample_stats"]
    np.testing.assert_allclose(stats["log_weight"], stats["log_p"] - stats["log_q"])


def test_log_weights_of_the_exact_posterior_are_the_evidence():
    data = linear_regression.data()
    args = tuple(t.double() for t in (data if isinstance(data, tuple) else (data,)))
    guide = linear_regression.guides["exact"]()
    tree = from_guide(guide, linear_regression.model, *args, num_samples=20)
    exact = linear_regression.exact(*args)["log_evidence"]
    np.testing.assert_allclose(tree["sample_stats"]["log_weight"], exact, rtol=1e-9)


def test_programs_that_mix_particles_are_drawn_one_by_one():
    def mixing(x=X):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("total", w.sum())
        with pyro.plate("row", 3):
            pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=x)

    guide = AutoNormal(mixing)
    guide()
    posterior = from_guide(guide, mixing, num_samples=7)["posterior"]
    np.testing.assert_allclose(posterior["total"], posterior["w"].sum("w_dim_0"), rtol=1e-6)
    assert len(np.unique(posterior["total"])) == 7


def test_point_mass_guide():
    guide = AutoDelta(model)
    guide(X)
    posterior = from_guide(guide, model, X, num_samples=4)["posterior"]
    assert posterior["z"].shape == (1, 4, 3, 2)
    z = np.asarray(posterior["z"])
    assert (z == z[:, :1]).all()


def test_no_plates_and_a_single_draw():
    def flat():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    tree = from_guide(flat, flat, num_samples=1)
    assert tree["posterior"]["z"].shape == (1, 1)
    assert tree["sample_stats"]["log_weight"].item() == 0.0


def test_two_guides_of_one_class_keep_their_own_parameters():
    """Pyro's modules take over what the param store holds under their name."""
    guides = []
    for loc in (1.5, -1.5):
        pyro.clear_param_store()
        guide = AutoNormal(model)
        guide(X)
        with torch.no_grad():
            guide.locs.scale.fill_(loc)
        guides.append(guide)
    means = [np.log(from_guide(g, model, X)["posterior"]["scale"]).mean() for g in guides]
    np.testing.assert_allclose(means, [1.5, -1.5], atol=0.05)


def test_refusals():
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        from_guide(model, model, X, num_samples=0)
    with pytest.raises(ValueError, match="'scale' of the model is missing in the guide"):
        from_guide(lambda x: None, model, X)
