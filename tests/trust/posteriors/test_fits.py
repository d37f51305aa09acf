"""Full-rank guides at their optimum beside posteriordb's draws."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_elbo_lab import Comparison, compare, from_guide
from pyro_elbo_lab.objectives.particles.probe import is_vectorizable
from pyro_elbo_lab.programs.pair import Pair
from tests.trust.posteriors.registry import POSTERIORS

EIGHT_SCHOOLS = "eight_schools-eight_schools_noncentered"


def compared(
    shared: Path, fitted: Callable[[str], Any], report: Callable[[str], None], name: str
) -> Comparison:
    posterior = POSTERIORS[name]
    tree = from_guide(
        fitted(name), posterior.model, *posterior.arguments(shared), num_samples=10_000
    )
    comparison = compare({"full rank": tree}, posterior.reference(shared))
    report(f"{name}: {comparison.verdicts['full rank']}")
    return comparison


@pytest.mark.parametrize("name", [name for name in POSTERIORS if name != EIGHT_SCHOOLS])
def test_full_rank_is_good_enough_for_all_but_eight_schools(
    shared: Path, fitted: Callable[[str], Any], report: Callable[[str], None], name: str
) -> None:
    comparison = compared(shared, fitted, report, name)
    assert comparison.findings["full rank"].kind.startswith("good")
    assert comparison.table["mean_error"].abs().max() < 0.1
    assert comparison.table["sd_ratio"].between(0.85, 1.1).all()


def test_full_rank_is_biased_for_eight_schools(
    shared: Path, fitted: Callable[[str], Any], report: Callable[[str], None]
) -> None:
    """A log-normal tau misses the long right tail, and z is no Gaussian given tau."""
    comparison = compared(shared, fitted, report, EIGHT_SCHOOLS)
    table = comparison.table.xs("full rank")
    assert table["mean_error"]["tau"] < -0.1
    assert table["sd_ratio"]["tau"] < 0.95
    assert comparison.findings["full rank"].kind != "good"
    assert np.isfinite(table.to_numpy(dtype=float)).all()


@pytest.mark.parametrize("name", POSTERIORS)
def test_programs_run_beneath_a_plate_of_draws(
    shared: Path, fitted: Callable[[str], Any], name: str
) -> None:
    """With the densities of single runs, which is what is checked."""
    posterior = POSTERIORS[name]
    assert is_vectorizable(Pair(posterior.model, fitted(name), posterior.arguments(shared)))
