"""What `tests.pyro_suite` loads into pytest: Pyro's tests with our objectives in place of its own.

A copy of this file lies beside a copy of Pyro's tests when they run, so it imports nothing of ours
but the package.
"""

import json
import os
import re
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro.infer
import pytest

import pyro_elbo_lab
from pyro_elbo_lab import AnalyticKLELBO, StandardELBO

REPLACED: dict[str, Any] = {
    "Trace_ELBO": StandardELBO,
    "TraceMeanField_ELBO": AnalyticKLELBO,
    "TraceEnum_ELBO": StandardELBO,
}
ORIGINAL = {name: getattr(pyro.infer, name) for name in REPLACED}
OURS = os.environ.get("PYRO_SUITE_CLASSES") != "pyro"
SECONDS = int(os.environ.get("PYRO_SUITE_SECONDS", "120"))
PACKAGE = str(Path(pyro_elbo_lab.__file__).parent)

OTHERS = re.compile(r"JitTrace|TraceGraph|TraceTMC|EnergyDistance|TailAdaptive|RenyiELBO|MMD")
"""Other losses of Pyro, in the names of tests that have one for each loss."""

REASONS = {
    r"test_(non)?empty_model_empty_guide_ok\[True-TraceEnum|misuse_warning\[TraceEnum"
    r"|missing_config_warning\[True|no_discrete_vars_warning\[True": (
        "warns that another class would do, where ours is both"
    ),
    r"misuse_warning\[Trace_ELBO-(sequential|parallel)": (
        "warns that Trace_ELBO does not heed the mark, where ours averages over all values"
    ),
    r"discrete_iplates_plate_dependency_warning\[True-(sequential|parallel)": (
        "warns that a site may depend on what is enumerated in an earlier plate, which Pyro cannot "
        "tell; ours can, and it does not"
    ),
    r"test_elbo_enumerate_plate_5|test_elbo_enumerate_plates_8\[plate-": (
        "Pyro refuses the log of a sum of the model that takes in a plate in which the guide "
        "enumerates; ours draws there, with a warning"
    ),
    r"test_mean_field_warn": "warns that TraceMeanField_ELBO may be wrong, where ours is right",
    r"test_particle_gradient\[Trace(Enum)?_ELBO-(non)?reparam": (
        "compares one draw with the terms of Pyro's own estimator; ours has the same expectation"
    ),
    r"test_enum_recycling_grid": (
        "x_1_1 reads x_0_1 and x_1_0, which Pyro has given one dimension: it sums their diagonal "
        "alone. Ours is an error that says so"
    ),
    r"test_auto_transform\[Auto(Diagonal|Multivariate)Normal": (
        "3500 steps at a rate of .001 from a scale of .1 are too few for the default gradient, "
        "which is noisy there; gradient='pathwise' passes"
    ),
    r"test_enumerate_sequential_guide$": (
        "counts the runs of the model; ours are more, to learn its structure first"
    ),
    r"test_(beta_binomial|gaussian_hmm)_elbo": (
        "the guide is the posterior by the model's own parameters, where the pathwise gradient "
        "alone has no noise; gradient='pathwise' passes"
    ),
    r"compute_marginals|marginals|sample_posterior": "calls a method that TraceEnum_ELBO alone has",
    r"test_traceenum_elbo\[": "needs torch.jit.trace, which warns that it is deprecated",
}

used: set[str] = set()


def stand_in(name: str) -> type:
    """A class of the name that makes our objective, and notes that the test did so."""

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        used.add(name)
        return (REPLACED if OURS else ORIGINAL)[name](*args, **kwargs)

    return type(name, (), {"__new__": new})


def pytest_configure() -> None:
    """Put the stand-ins in Pyro's place: here, as a doctest run imports this file as well."""
    for name in REPLACED:
        stand = stand_in(name)
        setattr(pyro.infer, name, stand)
        for module in ("trace_elbo", "trace_mean_field_elbo", "traceenum_elbo"):
            if hasattr(getattr(pyro.infer, module), name):
                setattr(getattr(pyro.infer, module), name, stand)


def record(**entries: Any) -> None:
    with open(os.environ["PYRO_SUITE_RECORDS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(entries) + "\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of other losses, and those that look into how Pyro's work, with a reason."""
    kept = []
    for item in items:
        reason = next((why for name, why in REASONS.items() if re.search(name, item.nodeid)), "")
        if reason and OURS:
            record(test=item.nodeid, classes=[], kind="deselected", why=reason)
        elif not OTHERS.search(item.nodeid):
            kept.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _give_up(*_: Any) -> None:
    raise TimeoutError(f"over {SECONDS} s")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    used.clear()
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(SECONDS)
    try:
        return (yield)
    finally:
        signal.alarm(0)


def kind_of(error: BaseException) -> str:
    """How a test failed.

    "refused" is what the package raises or warns of where Pyro's test expects neither, "words" an
    error that Pyro raises too, with another text, "took" what Pyro refuses, "shapes" an assertion
    within a program.
    """
    if isinstance(error, TimeoutError):
        return "slow"
    if isinstance(error, pytest.fail.Exception):
        return "took"
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    inside = any(name.startswith(PACKAGE) for name in frames)
    if isinstance(error, AssertionError):
        if "did not match" in str(error):
            return "words"
        return "shapes" if inside else "numbers"
    return "refused" if inside else "other"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report: Any = yield
    if call.when == "call" and used:
        kind, why = report.outcome, ""
        if call.excinfo is not None and report.outcome == "failed":
            kind = kind_of(call.excinfo.value)
            why = f"{call.excinfo.typename}: {call.excinfo.value}"
        record(test=item.nodeid, classes=sorted(used), kind=kind, why=why[:2000])
    return report
