"""What `tests.pyro_suite` loads into pytest: Pyro's tests with our objectives in place of its own.

A copy of this file lies beside a copy of Pyro's tests when they run, so it imports nothing of ours
but the package.
"""

import json
import os
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro.infer
import pytest

import pyro_elbo_lab
from pyro_elbo_lab import AnalyticKLELBO, StandardELBO

REPLACED = {
    "Trace_ELBO": StandardELBO,
    "TraceMeanField_ELBO": AnalyticKLELBO,
    "TraceEnum_ELBO": StandardELBO,
}
ORIGINAL = {name: getattr(pyro.infer, name) for name in REPLACED}
OURS = os.environ.get("PYRO_SUITE_CLASSES") != "pyro"
SECONDS = int(os.environ["PYRO_SUITE_SECONDS"])
PACKAGE = str(Path(pyro_elbo_lab.__file__).parent)

NOT_MEANT = {
    "test_elbo_hmm_in_model": "",
}
OWN_METHODS = ("compute_marginals", "sample_posterior", "_differentiable_loss_parts")

used: set[str] = set()


def stand_in(name: str) -> type:
    """A class of the name that makes our objective, and notes that the test did so."""

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        used.add(name)
        return (REPLACED if OURS else ORIGINAL)[name](*args, **kwargs)

    return type(name, (), {"__new__": new})


for _name in REPLACED:
    _class = stand_in(_name)
    setattr(pyro.infer, _name, _class)
    for _module in ("trace_elbo", "trace_mean_field_elbo", "traceenum_elbo"):
        _file = getattr(pyro.infer, _module)
        if hasattr(_file, _name):
            setattr(_file, _name, _class)


def _raise(*_: Any) -> None:
    raise TimeoutError(f"over {SECONDS} s")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    used.clear()
    signal.signal(signal.SIGALRM, _raise)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)


def _kind(error: BaseException) -> str:
    """How a test failed: "numbers", "refused" by the package, "took" what Pyro refuses, "slow"."""
    if isinstance(error, TimeoutError):
        return "slow"
    if isinstance(error, AttributeError) and any(name in str(error) for name in OWN_METHODS):
        return "own method"
    if isinstance(error, pytest.fail.Exception):
        return "took"
    if isinstance(error, AssertionError):
        return "numbers"
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return "refused" if any(name.startswith(PACKAGE) for name in frames) else "other"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if call.when != "call" or not used:
        return
    kind, why = report.outcome, ""
    if call.excinfo is not None and report.outcome == "failed":
        kind = _kind(call.excinfo.value)
        why = f"{call.excinfo.typename}: {call.excinfo.value}"
    record = {"test": item.nodeid, "classes": sorted(used), "kind": kind, "why": why[:2000]}
    with open(os.environ["PYRO_SUITE_RECORDS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
