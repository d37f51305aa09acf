"""The whole line on eight schools: fit, draws, comparison with exact moments."""

import numpy as np
import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from models import eight_schools
from pyro_elbo_lab.inference.fitting.fit import fit
from pyro_elbo_lab.inference.trees.convert import from_guide
from pyro_elbo_lab.objectives.lower_bounds import StandardELBO

NUM_DRAWS = 20_000


@pytest.fixture(scope="module", params=[AutoNormal, AutoMultivariateNormal])
def fitted(request):
    """The guide's class, and its mean errors and sd ratios by site, in reference sds."""
    pyro.clear_param_store()
    y, sigma = (t.double() for t in eight_schools.data())
    guide = request.param(eight_schools.model)
    objective = StandardELBO(10, vectorize_particles=True)
    fit(eight_schools.model, guide, y, sigma, objective=objective, num_steps=2500, progress=False)
    pyro.set_rng_seed(0)
    tree = from_guide(guide, eight_schools.model, y, sigma, num_samples=NUM_DRAWS)
    exact = eight_schools.exact(y, sigma)
    errors, ratios = {}, {}
    for name in ("mu", "tau", "theta", "z"):
        draws = tree["posterior"][name]
        mean, sd = exact["mean"][name].numpy(), exact["sd"][name].numpy()
        errors[name] = (draws.mean(("chain", "draw")).values - mean) / sd
        ratios[name] = draws.std(("chain", "draw")).values / sd
    log_weights = torch.from_numpy(tree["sample_stats"]["log_weight"].values)
    return request.param, errors, ratios, log_weights, exact["log_evidence"]


def test_full_rank_means(fitted):
    """Within 0.15 reference sd, but for tau: at the ELBO's optimum, where long runs with 10 to 300
    particles end, its mean is 0.166 sd too small, as a log-normal misses its long right tail."""
    autoguide, errors, *_ = fitted
    if autoguide is AutoNormal:
        pytest.skip("a statement about the full-rank guide")
    assert max(np.abs(errors[name]).max() for name in ("mu", "theta", "z")) < 0.15
    assert -0.2 < errors["tau"] < -0.12


def test_mean_field_underestimates_the_spread_of_its_latents(fitted):
    autoguide, _, ratios, *_ = fitted
    latent = np.concatenate([ratios[name].ravel() for name in ("mu", "tau", "z")])
    if autoguide is AutoMultivariateNormal:
        assert latent.mean() > 0.95
        return
    noise = 1 / np.sqrt(2 * NUM_DRAWS * latent.size)
    assert latent.mean() < 1 - 4 * noise
    assert ratios["mu"] < 0.97 and ratios["tau"] < 0.97


def test_bounds_lie_on_both_sides_of_the_importance_estimate(fitted):
    *_, log_weights, log_evidence = fitted
    assert log_weights.mean() < log_evidence
    estimate = log_weights.logsumexp(-1).item() - np.log(NUM_DRAWS)
    assert estimate == pytest.approx(log_evidence, abs=0.1)
