"""Captured or not, the numbers are those of the objective: the table of awkward programs."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from pyro_elbo_lab.compilation import captured
from pyro_elbo_lab.compilation.compiled_objective import Backend, compiled
from tests.compilation.programs_table.awkward import PROGRAMS, Program, Run
from tests.support.tolerances import assert_means_equal

CALLS = 7
MANY_CALLS = 100
LEARNING_RATE = 0.01
ROUNDING = 3e-4  # of the largest entry: float32, and sums in another order, after some steps

Call = dict[str, Tensor]


@dataclass
class Record:
    """What calls of an objective gave.

    Attributes:
        calls: of each, "loss" and gradients by parameter.
        state: what the program itself has changed.
        warnings: that it runs eagerly, or without being compiled.
        status: after the last call.
    """

    calls: list[Call]
    state: dict[str, Tensor]
    warnings: list[str]
    status: str


def leaves() -> dict[str, Tensor]:
    return dict(pyro.get_param_store()._params)


def settle(run: Run) -> None:
    """What happens at the first run only has happened: plans and lazy parameters are made."""
    with poutine.block():
        run.objective.loss_and_grads(run.model, run.guide, *run.arguments(0), **run.kwargs)


def evaluate(objective: ELBO, run: Run, args: tuple) -> Call:
    """Loss and gradients; a gradient that is not there is zero."""
    for leaf in leaves().values():
        if leaf.grad is not None:
            leaf.grad = torch.zeros_like(leaf)
    loss = objective.loss_and_grads(run.model, run.guide, *args, **run.kwargs)
    grads = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
        for name, leaf in leaves().items()
    }
    return {"loss": torch.as_tensor(loss, dtype=torch.float64), **grads}


def step() -> None:
    """Every parameter moves by at most LEARNING_RATE."""
    with torch.no_grad():
        for leaf in leaves().values():
            if leaf.grad is not None and leaf.grad.any():
                leaf -= LEARNING_RATE * leaf.grad / leaf.grad.abs().max()


def follow(row: Program, wrap: Callable[[ELBO], ELBO], calls: int, moving: bool = True) -> Record:
    """Build the program anew and call its objective, with seeds of their own for every call."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    run = row.build()
    objective = wrap(run.objective)
    if row.settled:
        settle(run)
    found: list[Call] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in range(calls):
            args = run.arguments(call)
            pyro.set_rng_seed(100 + call)
            with run.around(call):
                found.append(evaluate(objective, run, args))
            if moving:
                step()
        state = {name: value.clone() for name, value in run.state().items()}
        status = getattr(objective, "status", lambda *args, **kwargs: "")
        ran = status(run.model, run.guide, *args, **run.kwargs)
    said = [str(w.message) for w in caught if " runs " in str(w.message)]
    torch.set_default_dtype(torch.float32)
    return Record(found, state, said, ran)


def assert_close(found: Call, expected: Call, where: str) -> None:
    assert found.keys() == expected.keys(), where
    for name, value in expected.items():
        finite = value[torch.isfinite(value)]
        scale = max(1.0, float(finite.abs().max()) if finite.numel() else 0.0)
        torch.testing.assert_close(
            found[name],
            value,
            rtol=0.0,
            atol=ROUNDING * scale,
            equal_nan=True,
            msg=partial("{}, {}: {}".format, where, name),
        )


def assert_outcome(row: Program, record: Record) -> None:
    eager = record.status.startswith("eager: ")
    assert eager or record.status == "captured"
    if row.outcome != "either":
        assert eager == (row.outcome == "eager"), record.status
    assert len(record.warnings) == eager, record.warnings
    for said in record.warnings:
        assert record.status.removeprefix("eager: ") in said
        assert row.reason in said, said
        assert row.place in said, said


def assert_same_numbers(row: Program, backend: Backend) -> Record:
    moving = row.same_stream
    calls = CALLS if row.same_stream else MANY_CALLS
    expected = follow(row, lambda objective: objective, calls, moving)
    found = follow(row, lambda objective: compiled(objective, backend), calls, moving)
    if not row.repeats:
        return found
    if row.same_stream:
        for call in range(calls):
            assert_close(found.calls[call], expected.calls[call], f"call {call}")
        assert_close(found.state, expected.state, "state")
        return found
    for name in expected.calls[0]:
        ours, theirs = (torch.stack([c[name] for c in r.calls]) for r in (found, expected))
        assert_means_equal(ours, theirs)
    return found


@pytest.mark.parametrize("row", PROGRAMS.values(), ids=PROGRAMS)
def test_graph_gives_what_the_objective_gives(row):
    record = assert_same_numbers(row, "graph")
    assert_outcome(row, record)


COMPILED = {name: row for name, row in PROGRAMS.items() if row.compiles}


@pytest.mark.parametrize("row", COMPILED.values(), ids=COMPILED)
def test_compiled_graph_gives_what_the_objective_gives(row):
    record = assert_same_numbers(row, "inductor")
    assert_outcome(row, record)


def test_the_table_is_long_and_has_both_outcomes():
    outcomes = [row.outcome for row in PROGRAMS.values()]
    assert len(outcomes) >= 35
    assert min(outcomes.count("captured"), outcomes.count("eager")) >= 10
    assert len(COMPILED) >= 8


@pytest.mark.parametrize(
    "name",
    ["seed set inside", "parameter read through numpy memory"],
)
def test_captures_that_are_not_compared_with_eager_runs_are_noticed(name, monkeypatch):
    monkeypatch.setattr(captured, "_compare", lambda *arguments: None)
    with pytest.raises(AssertionError):
        assert_outcome(PROGRAMS[name], assert_same_numbers(PROGRAMS[name], "graph"))
