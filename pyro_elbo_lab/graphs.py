"""The graphs of a fit, one for each kind of arguments and numbers that steps often meet."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from pyro_elbo_lab.compiled import _condition as condition
from pyro_elbo_lab.compiled import _leaves as current_leaves
from pyro_elbo_lab.compiled import signature
from pyro_elbo_lab.engines import Engine, Runner
from pyro_elbo_lab.evaluation import Evaluation, evaluate
from pyro_elbo_lab.guard import CaptureError
from pyro_elbo_lab.svi_steps import Task, warn

__all__ = ["Graphs"]

MOST_GRAPHS = 4
"""Each takes seconds to make."""

OFTEN = 50
"""Steps of one kind that are taken eagerly before they are worth a graph."""

_KINDS = 3  # of them are usual: a last batch that is smaller, a number that is switched
_MOST_COUNTED = 100


class Graphs:
    """The graphs of a fit, by what they are valid for.

    Args:
        task: what is to be fitted.
        engine: makes them, and has the first.
    """

    def __init__(self, task: Task, engine: Engine) -> None:
        self._task = task
        self._engine = engine
        self._numbers = engine.main.evaluation.numbers
        self._around = self._numbers.snapshot()
        self._first = self._signature(task.first)
        self._found: dict[Any, Runner | None] = {self._first: engine.main}
        self._intact = [_is_intact(engine.main.evaluation)]
        self._eager: Counter[Any] = Counter()
        self._warned = False

    def serve(self, runner: Runner, batch: tuple) -> bool:
        """Whether this would be the graph of a next step, as far as one can see without a
        comparison. If not, something was changed since the last."""
        return (
            self._numbers.unchanged()
            and not self.obstacle()
            and self._found.get(self._signature(batch)) is runner
        )

    def obstacle(self) -> str:
        """Why none of them can be used any more; empty if they can."""
        if all(intact() for intact in self._intact):
            return ""
        return (
            "a parameter or a tensor that the programs hold was replaced, moved in memory, given a "
            "hook, or is trained no longer"
        )

    def find(self, batch: tuple) -> Runner | None:
        """The graph for these arguments at the present numbers; None for an eager step."""
        if not self._numbers.unchanged():
            self._around = self._numbers.snapshot()
        key = self._signature(batch)
        if key in self._found:
            return self._found[key]
        self._eager[key] += 1
        if len(self._eager) == _KINDS + 1:
            self._warn(
                f"graphs are made for what {OFTEN} steps have met, and {self._difference(key)}. "
                "Pass changing numbers as tensor arguments, and batches of one size"
            )
        if self._eager[key] < OFTEN or len(self._found) == MOST_GRAPHS:
            self._forget()
            return None
        del self._eager[key]
        self._found[key] = self._make(batch, key)
        return self._found[key]

    def _make(self, batch: tuple, key: Any) -> Runner | None:
        task, main = self._task, self._engine.main.evaluation
        try:
            again = evaluate(task.objective, task.model, task.guide, batch, task.kwargs)
        except CaptureError as error:
            self._warn(f"{self._difference(key)}, and then {error}")
            return None
        if list(map(id, again.trained)) != list(map(id, main.trained)):
            self._warn(f"{self._difference(key)}, and then the loss depends on other parameters")
            return None
        self._intact.append(_is_intact(again))
        return self._engine.runner(again)

    def _warn(self, reason: str) -> None:
        if not self._warned:
            warn(f"Some steps of the fit run eagerly: {reason}.")
        self._warned = True

    def _forget(self) -> None:
        for key in list(self._eager)[: -_MOST_COUNTED - 1 or None]:
            if len(self._eager) > _MOST_COUNTED:
                del self._eager[key]

    def _difference(self, key: Any) -> str:
        """What distinguishes a kind from the first."""
        *arguments, around = key
        *first, around_first = self._first
        names = self._numbers.difference(around_first, around)
        if names:
            return f"the programs read {', '.join(map(repr, names[:3]))}, which changes"
        return "arguments change" if arguments != first else "numbers change"

    def _signature(self, batch: tuple) -> Any:
        task = self._task
        return signature(batch, dict(task.kwargs), task.model, task.guide, self._around)


def _is_intact(evaluation: Evaluation) -> Callable[[], bool]:
    """Tells whether parameters and held tensors are still those that a graph was made for, in the
    same memory, trained and without hooks."""
    known = condition(evaluation)

    def intact() -> bool:
        now = current_leaves(evaluation.names)
        same = all(a is b for a, b in zip(now, evaluation.leaves, strict=True))
        return same and condition(evaluation) == known

    return intact
