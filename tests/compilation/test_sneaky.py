"""What programs read besides their arguments is seen when it changes; what they leave is there."""

import warnings
from typing import Any

import pyro
import pytest
import torch

from pyro_elbo_lab.compilation.compiled_objective import compiled
from pyro_elbo_lab.inference.fitting.fit import fit
from tests.compilation.sneaky import containers, functions, harmless, leaving, objects, surroundings
from tests.compilation.sneaky.registry import ROWS, Row, default_objective

CALLS = 5
CHANGE = 2  # between comparisons with eager runs, which come at the second and the fourth call
KINDS = [objects, containers, functions, surroundings, leaving, harmless]

Calls = list[dict[str, Any]]


def follow(row: Row, graph: bool) -> tuple[Calls, str, list[str]]:
    """Losses, gradients and what the user sees, call by call; the status and what was said."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    case = row.build()
    objective: Any = default_objective(case)
    objective.loss(case.model, case.guide, *case.args)
    if graph:
        objective = compiled(objective, backend="graph")
    found: Calls = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for call in range(CALLS):
                if call == CHANGE:
                    case.change()
                torch.manual_seed(call)
                for leaf in pyro.get_param_store()._params.values():
                    leaf.grad = None
                loss = objective.loss_and_grads(case.model, case.guide, *case.args)
                store = pyro.get_param_store()._params
                gradients = {
                    name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
                    for name, leaf in store.items()
                }
                found.append({"loss": torch.tensor(loss), "seen": case.seen(), **gradients})
            status = objective.status(case.model, case.guide, *case.args) if graph else ""
    finally:
        torch.set_default_dtype(torch.float32)
    return found, status, [str(w.message) for w in caught if " runs " in str(w.message)]


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_call_gives_what_the_objective_gives(row: Row) -> None:
    found, status, said = follow(row, graph=True)
    if not row.moves:
        expected, _, _ = follow(row, graph=False)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        if row.outcome == "seen":  # or the change would be no test
            before, after = expected[CHANGE - 1 : CHANGE + 1]
            assert case_changes(row) or before["loss"].dtype != after["loss"].dtype
    if row.outcome == "eager":
        assert status.startswith("eager: ") and len(said) == 1
        assert row.reason in said[0]
    else:
        assert len(said) == status.startswith("eager: ")
    if row.outcome == "captured":
        assert status == "captured" and not said


def case_changes(row: Row) -> bool:
    """Whether a loss is another one after the change, under the same seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    case = row.build()
    objective = default_objective(case)
    losses = []
    for change in (lambda: None, case.change):
        change()
        torch.manual_seed(0)
        losses.append(objective.loss(case.model, case.guide, *case.args))
    torch.set_default_dtype(torch.float32)
    return losses[0] != losses[1]


FITTED = [
    "surroundings: counter of itertools",
    "surroundings: clock",
    "leaving: attribute of the guide",
    "leaving: trace of the guide",
]


@pytest.mark.parametrize("name", FITTED)
def test_a_fit_runs_them_eagerly_and_says_why(name: str) -> None:
    pyro.clear_param_store()
    row = ROWS[name]
    case = row.build()
    objective = default_objective(case)
    with pytest.warns(UserWarning, match=f"not compiled: .*{row.reason}"):
        result = fit(
            case.model, case.guide, *case.args, objective=objective, num_steps=3, compile=True,
            progress=False,
        )  # fmt: skip
    assert result.compilation.startswith("eager: ") and row.reason in result.compilation


def test_the_table_is_long() -> None:
    outcomes = [row.outcome for row in ROWS.values()]
    assert len(outcomes) - outcomes.count("captured") >= 100
    assert outcomes.count("captured") >= 25
    assert len(KINDS) == 6
