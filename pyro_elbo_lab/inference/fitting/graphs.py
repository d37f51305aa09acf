"""The graphs of a fit, one for each kind of arguments and numbers that steps often meet."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch.utils._pytree import tree_leaves

from pyro_elbo_lab.compilation.capture.guard import CaptureError
from pyro_elbo_lab.compilation.captured import evaluate
from pyro_elbo_lab.compilation.compiled_objective import _condition as condition
from pyro_elbo_lab.compilation.compiled_objective import signature
from pyro_elbo_lab.compilation.leaves import hooked
from pyro_elbo_lab.inference.fitting.engines import Engine, Runner
from pyro_elbo_lab.inference.fitting.svi_steps import Task
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.state import random_states_kept

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
        self._graphs = [_Graph(self._signature(task.pair.args), engine.main)]
        self._eager: Counter[Any] = Counter()
        self._refused: set[Any] = set()
        self._warned = False

    def obstacle(self) -> str:
        """Why none of them can be used any more; empty if they can."""
        main = self._engine.main.evaluation
        now = main.present()
        for name, leaf, known in zip(main.names, now, main.leaves, strict=True):
            if leaf is not known:
                return f"parameter '{name}' was replaced in the param store"
        for name, leaf, has in zip(main.names, main.leaves, main.has_gradient, strict=True):
            if has and not leaf.requires_grad:
                return f"parameter '{name}' is trained no longer"
            if hooked(leaf) and not self._engine.calls_hooks:
                return f"parameter '{name}' has a hook on its gradient now"
        return ""

    def find(self, batch: tuple) -> Runner | None:
        """The graph for these arguments at the present numbers; None for an eager step."""
        signature = self._signature(batch)
        for graph in self._graphs:
            if graph.signature == signature and graph.is_valid(self._arguments(batch)):
                return graph.runner
        kind = signature, self._engine.main.evaluation.numbers.snapshot()
        self._eager[kind] += 1
        if len(self._eager) > _KINDS:
            self._warn(
                f"{self._difference(signature)}, and a graph is made only for what {OFTEN} steps "
                "share. Pass changing numbers as tensor arguments, and batches of one size"
            )
        often = self._eager[kind] >= OFTEN and kind not in self._refused
        if often and len(self._graphs) < MOST_GRAPHS and len(self._refused) < MOST_GRAPHS:
            return self._make(batch, kind)
        if len(self._eager) > _MOST_COUNTED:
            del self._eager[next(iter(self._eager))]
        return None

    def serve(self, runner: Runner, batch: tuple) -> bool:
        """Whether a next step would be taken by this graph, as far as one can see without a
        comparison. If not, something was changed since the last."""
        signature = self._signature(batch)
        graph = next(graph for graph in self._graphs if graph.runner is runner)
        valid = graph.signature == signature and graph.is_valid(self._arguments(batch))
        return valid and not self.obstacle()

    def _make(self, batch: tuple, kind: Any) -> Runner | None:
        task, main = self._task, self._engine.main.evaluation
        try:
            again = evaluate(task.objective, task.pair.at(batch))
        except CaptureError as error:
            self._refused.add(kind)
            self._warn(f"{self._difference(kind[0])}, and then {error}")
            return None
        if list(map(id, again.trained)) != list(map(id, main.trained)):
            self._refused.add(kind)
            self._warn(f"{self._difference(kind[0])}, and then the loss has other parameters")
            return None
        with random_states_kept():
            graph = _Graph(kind[0], self._engine.runner(again))
        self._graphs.append(graph)
        del self._eager[kind]
        return graph.runner

    def _warn(self, reason: str) -> None:
        if not self._warned:
            warn(f"Some steps of the fit run eagerly: {reason}.")
        self._warned = True

    def _difference(self, signature: Any) -> str:
        """What distinguishes a step from the first."""
        names = self._engine.main.evaluation.numbers.changed()
        if names:
            return f"what they read changes: {', '.join(map(repr, names[:3]))}"
        read = self._engine.main.evaluation.graph.reads.changed
        if read:
            return f"what they read of arguments as a number or a shape changes ({read})"
        same = signature == self._graphs[0].signature
        return "tensors that they hold are moved" if same else "their arguments change"

    def _arguments(self, batch: tuple) -> list[Any]:
        return tree_leaves((batch, dict(self._task.pair.kwargs)))

    def _signature(self, batch: tuple) -> Any:
        return signature(self._task.pair.at(batch))


class _Graph:
    """A graph, and what it is valid for."""

    def __init__(self, signature: Any, runner: Runner) -> None:
        self.signature = signature
        self.runner = runner
        self._condition = condition(runner.evaluation)

    def is_valid(self, arguments: Sequence[Any]) -> bool:
        """Whether numbers are those of its capture, also those that are read from arguments, and
        parameters and held tensors are where they were, with hooks if they had some."""
        evaluation = self.runner.evaluation
        there = evaluation.numbers.unchanged() and self._condition == condition(evaluation)
        return there and evaluation.is_for(arguments)
