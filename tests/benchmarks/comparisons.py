"""What the comparisons of a compiled fit with eager runs take of its time.

Run from the project's root: python -m tests.benchmarks.comparisons [--quick] [--out FILE]

The share is that of the comparisons' own time, and of what goes with them, in the time of the whole
fit, compiling included, and in that of its steps alone. Beside it stands the ratio of fits with and
without comparisons, in turn, which is the noisier measure.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pyro
from pyro.optim import Adam

from pyro_elbo_lab import Fit, StandardELBO, fit
from pyro_elbo_lab.inference.fitting.budget import Budget
from pyro_elbo_lab.inference.fitting.graph_steps import GraphSteps
from tests.benchmarks import harness
from tests.benchmarks.harness import number, say, spread, table
from tests.benchmarks.problems import PROBLEMS, Problem


def train(problem: Problem, num_steps: int, callback: bool) -> tuple[Fit, list[Budget]]:
    """A compiled fit, and the budgets that it has made."""
    pyro.clear_param_store()
    budgets: list[Budget] = []
    init = Budget.__init__

    def kept(self: Budget, started: float) -> None:
        budgets.append(self)
        init(self, started)

    with patch.object(Budget, "__init__", kept):
        result = fit(
            problem.model,
            problem.make_guide(problem.model),
            *problem.data(),
            objective=StandardELBO(),
            optimizer=Adam({"lr": 1e-3}),
            num_steps=num_steps,
            compile=True,
            callbacks=[lambda step, loss: False] if callback else [],
            progress=False,
        )
    return result, budgets


@contextmanager
def without_comparisons() -> Iterator[None]:
    """Fits inside the block trust their graphs."""

    def good(self: Any, losses: list[float]) -> None:
        self._good = len(losses)

    with (
        patch.object(GraphSteps, "_is_due", lambda self, losses: False),
        patch.object(GraphSteps, "_check", good),
    ):
        yield


def row(problem: Problem, num_steps: int, callback: bool, rounds: int) -> list[Any]:
    """Shares and ratios of one problem."""
    whole, steps, counts, costs, ratios = [], [], [], [], []
    train(problem, 10, callback)  # compiles
    for i in range(rounds):
        times = {}
        for compared in (True, False) if i % 2 else (False, True):
            begun = time.perf_counter()
            if compared:
                result, (budget,) = train(problem, num_steps, callback)
            else:
                with without_comparisons():
                    other, _ = train(problem, num_steps, callback)
            times[compared] = time.perf_counter() - begun
        whole.append(100 * budget.spent / result.seconds)
        steps.append(100 * budget.spent / (result.seconds - result.compile_seconds))
        counts.append(budget.count)
        costs.append(1e3 * budget.spent / budget.count)
        taken = [f.seconds - f.compile_seconds for f in (result, other)]
        ratios.append(taken[0] / taken[1])
    how = "one by one" if callback else "blocks"
    return [
        problem.name, how, num_steps, number(np.median(counts)), number(np.median(costs)),
        spread(np.array(whole)), spread(np.array(steps)), spread(np.array(ratios)),
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = harness.arguments(__doc__, list(PROBLEMS))
    parser.add_argument("--rounds", type=int, help="7 by default")
    options = parser.parse_args()
    rounds = options.rounds or (2 if options.quick else 7)
    harness.use_one_thread()
    warnings.simplefilter("error", UserWarning)  # a false alarm would be one
    rows = []
    for model in options.models:
        for num_steps, callback in ((20_000, False), (5_000, True)):
            say(f"{model}, {num_steps} steps")
            few = model == "VAE" or options.quick
            steps = num_steps // 10 if few else num_steps
            rows.append(row(PROBLEMS[model], steps, callback, rounds))
    header = [
        "model",
        "steps",
        "number",
        "comparisons",
        "ms each",
        "% of the fit",
        "% of its steps",
    ]
    header.append("with / without, steps")
    note = f"{harness.machine()} One thread, {rounds} rounds in turn; median (quartiles)."
    harness.publish(table("Comparisons with eager runs", header, rows, note), options.out)


if __name__ == "__main__":
    main()
