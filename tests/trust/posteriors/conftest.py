"""A full-rank guide of each posterior, fitted once; and what the tests found, said at the end."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.trust.posteriors.optimum import full_rank
from tests.trust.posteriors.registry import POSTERIORS

FINDING = "finding"


@pytest.fixture(scope="session")
def fitted(shared: Path) -> Callable[[str], Any]:
    """From a posterior's name to its full-rank guide at the optimum."""

    @cache
    def fit(name: str) -> Any:
        posterior = POSTERIORS[name]
        return full_rank(posterior.model, *posterior.arguments(shared), num_points=512)

    return fit


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Takes a line for the end of the run."""
    return lambda line: record_property(FINDING, line)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    lines = [
        line
        for outcome in ("passed", "failed")
        for test in terminalreporter.stats.get(outcome, [])
        if "tests/trust/posteriors/" in test.nodeid
        for name, line in test.user_properties
        if name == FINDING
    ]
    if lines:
        terminalreporter.section("posteriors of posteriordb")
        for line in lines:
            terminalreporter.write_line(str(line))
