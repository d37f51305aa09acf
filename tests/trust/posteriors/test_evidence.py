"""Full-rank guides and posteriordb's draws enclose the evidence, which is known for all ten."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyro_elbo_lab import evidence
from tests.support.tolerances import critical_value
from tests.trust.posteriors.registry import POSTERIORS

WIDEST = {"eight_schools-eight_schools_noncentered": 0.5}
"""In nats. There k-hat is near 0.7: a full-rank guide misses the long tail of tau."""


@pytest.mark.parametrize("name", POSTERIORS)
def test_bounds_enclose_the_known_evidence(
    shared: Path, fitted: Callable[[str], Any], report: Callable[[str], None], name: str
) -> None:
    posterior, truth = POSTERIORS[name], POSTERIORS[name].truth(shared)
    known, known_se = truth["log_evidence"], truth.get("log_evidence_se", 0.0)
    bounds = evidence(
        posterior.model,
        fitted(name),
        *posterior.arguments(shared),
        reference=posterior.reference(shared),
        num_samples=20_000,
    )
    assert bounds.lower is not None and bounds.upper is not None and bounds.jeffreys is not None
    report(
        f"{name}: log evidence {known:.4f}, at least {bounds.lower.value:.4f} ± "
        f"{bounds.lower.se:.4f}, at most {bounds.upper.value:.4f} ± {bounds.upper.se:.4f}, "
        f"{bounds.width:.4f} nats apart, Jeffreys {bounds.jeffreys.value:.3f}"
    )
    critical = critical_value(2)
    assert bounds.lower.value - known <= critical * math.hypot(bounds.lower.se, known_se)
    assert known - bounds.upper.value <= critical * math.hypot(bounds.upper.se, known_se)
    assert bounds.width < WIDEST.get(name, 0.05)
    by_name = bounds.table.set_index("name")["value"]
    assert by_name["ELBO"] < known < by_name["EUBO"]
    assert bounds.jeffreys.value == pytest.approx(by_name["EUBO"] - by_name["ELBO"])
