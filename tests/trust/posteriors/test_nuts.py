"""NUTS, on all ten programs, agrees with posteriordb's draws and with what is known exactly."""

from pathlib import Path

import arviz_stats
import numpy as np
import pytest

from pyro_elbo_lab import nuts
from tests.support.tolerances import critical_value
from tests.trust.posteriors.registry import POSTERIORS, Posterior, scalars

NUM_SAMPLES = 2000
"""In each of four chains: about 6000 independent draws, whose sd has an error of 1 %."""


@pytest.mark.parametrize("posterior", POSTERIORS.values(), ids=list(POSTERIORS))
def test_nuts_agrees_with_posteriordb(shared: Path, posterior: Posterior) -> None:
    """Each mean within 4 combined MCSE, each sd within 5 %."""
    arguments = posterior.arguments(shared)
    tree = nuts(posterior.model, *arguments, num_samples=NUM_SAMPLES, progress=False)
    assert tree.attrs["reliable"], tree.attrs["reliability"]
    assert tree.attrs["density"] == "compiled"
    ours, known = scalars(tree), posterior.info(shared)["stats"]
    assert ours.keys() >= known.keys()
    for name, theirs in known.items():
        error = ours[name].mean() - theirs["mean"]
        assert abs(error) <= 4 * np.hypot(mcse(ours[name]), theirs["mcse_mean"]), name
        assert ours[name].std() == pytest.approx(theirs["sd"], rel=0.05), name
    truth = posterior.truth(shared)
    for name, mean in truth["mean"].items():
        error = abs(ours[name].mean() - mean)
        standard_error = np.hypot(mcse(ours[name]), truth.get("mean_se", {}).get(name, 0.0))
        assert error <= critical_value(len(truth["mean"])) * standard_error, name


def mcse(draws: np.ndarray) -> float:
    return float(arviz_stats.mcse(draws))
