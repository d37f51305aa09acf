"""Programs, data and draws belong together."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from pyro_elbo_lab import compare
from tests.trust.posteriors.registry import POSTERIORS, Posterior, scalars


@pytest.fixture(params=POSTERIORS.values(), ids=list(POSTERIORS))
def posterior(request: pytest.FixtureRequest) -> Posterior:
    return request.param


def latents(run: poutine.Trace) -> dict[str, Any]:
    return {
        name: site
        for name, site in run.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


def test_the_reference_has_the_draws_and_every_latent(shared: Path, posterior: Posterior) -> None:
    reference, info = posterior.reference(shared), posterior.info(shared)
    draws = scalars(reference)
    for name, stats in info["stats"].items():
        assert draws[name].shape == (10, 1000)
        assert draws[name].mean() == pytest.approx(stats["mean"], abs=1e-4 * stats["sd"])
        assert draws[name].std() == pytest.approx(stats["sd"], rel=1e-3)
    run = poutine.trace(posterior.model).get_trace(*posterior.arguments(shared))
    for name, site in latents(run).items():
        assert reference["posterior"][name].shape[2:] == site["value"].shape
        assert site["value"].dtype == torch.float64
    assert reference.attrs["reliable"] == 1 and "stan-dev/posteriordb" in reference.attrs["source"]


def test_the_reference_of_itself_is_good(shared: Path) -> None:
    """Odd and even chains of eight schools are draws of one posterior."""
    reference = POSTERIORS["eight_schools-eight_schools_noncentered"].reference(shared)
    odd, even = (reference.isel(chain=slice(start, None, 2)) for start in (1, 0))
    assert compare({"odd": odd}, even).findings["odd"].kind.startswith("good")


def test_the_hidden_markov_model_needs_no_bound_at_0(shared: Path) -> None:
    """The program leaves out 0 < mu[1], which must not matter: more than 10 sds away."""
    stats = POSTERIORS["hmm_example-hmm_example"].info(shared)["stats"]["mu[1]"]
    assert stats["mean"] > 10 * stats["sd"]
