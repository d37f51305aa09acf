"""A full-rank guide of each posterior, fitted once for all tests."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.posteriors.optimum import full_rank
from tests.posteriors.registry import POSTERIORS


@pytest.fixture(scope="session")
def fitted(shared: Path) -> Callable[[str], Any]:
    """From a posterior's name to its full-rank guide at the optimum."""

    @cache
    def fit(name: str) -> Any:
        posterior = POSTERIORS[name]
        return full_rank(posterior.model, *posterior.arguments(shared), num_points=512)

    return fit
