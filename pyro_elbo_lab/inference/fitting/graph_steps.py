"""Steps by a graph that is compared with eager runs now and then.

A comparison runs graph and program from the same random state, at the present parameters and
arguments. If they differ, the steps since the last one that was good are undone and taken again
eagerly, and so is the rest of the fit.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_elbo_lab.compilation.captured import Evaluation
from pyro_elbo_lab.inference.fitting.budget import Budget
from pyro_elbo_lab.inference.fitting.checkpoint import Checkpoint
from pyro_elbo_lab.inference.fitting.engines import Engine, Inside, Outside, Runner
from pyro_elbo_lab.inference.fitting.graphs import Graphs
from pyro_elbo_lab.inference.fitting.svi_steps import Rewindable, SviSteps, Task
from pyro_elbo_lab.inference.fitting.update_rules import Update
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.state import random_states_kept

__all__ = ["GraphSteps"]

_MOST_BYTES = 2**27  # of batches that are kept to go through them again
_BLOCK_SECONDS = 0.1


class GraphSteps:
    """Whole steps as one graph, or its loss and gradients.

    Args:
        task: what is to be fitted.
        evaluation: the captured objective.
        update: the optimizer as an update rule, or the reason it stays outside of the graph.
        started: when capturing began, by `time.perf_counter`.

    Attributes:
        note: how steps are taken, and why.
        seconds: what it took to capture and compile.
        budget: of comparisons.
    """

    def __init__(
        self, task: Task, evaluation: Evaluation, update: Update | str, started: float
    ) -> None:
        self._task = task
        self._engine: Engine
        with random_states_kept():
            if isinstance(update, str):
                self._engine = Outside(task, evaluation)
                self.note = f"compiled loss, with the optimizer outside of it: {update}"
            else:
                self._engine = Inside(task, evaluation, update)
                self.note = (
                    f"compiled: whole steps as one graph of {evaluation.graph.num_nodes} operators"
                )
        if self._engine.main.reason:
            warn(
                f"The fit's steps run as a graph that is not compiled: {self._engine.main.reason}."
            )
            self.note += f", not compiled: {self._engine.main.reason}"
        self._single = task.varying or task.one_by_one or isinstance(update, str)
        self._graphs = Graphs(task, self._engine)
        self._batches = Rewindable(task.batches, task.pair.args, keep=task.varying)
        self._last: tuple[Runner, tuple] = self._engine.main, task.pair.args
        self._block = 64
        self._good = 0
        self._mark: Checkpoint | None = None
        self._eager: SviSteps | None = None
        self._undone = False
        self.budget = Budget(started)
        self.seconds = time.perf_counter() - started

    @property
    def latest(self) -> tuple:
        """The arguments of the latest step."""
        return self._batches.latest

    def take(self, losses: list[float]) -> None:
        """Take one step or some, compare if it is time to, and undo steps that were wrong."""
        if self._eager is not None:
            if self._undone and self._mark is not None:
                self._mark.restore()  # what callbacks have done to it since
            self._undone = False
            self._eager.take(losses)
        elif self._single:
            self._take_one(losses)
        else:
            self._take_block(losses)
        if self._eager is None and self._is_due(losses):
            self._check(losses)

    def confirm(self, losses: list[float]) -> bool:
        """Whether the steps so far stand. If not, they are undone as by `take`."""
        if self._eager is not None or self._good == len(losses):
            return True
        self._check(losses)
        return self._eager is None

    def settle(self) -> None:
        """Bring the parameters and the optimizer up to date."""
        if self._eager is None:
            changed = self._engine.read() if self._single else ""  # by the last callback
            if not changed:
                self._engine.hand_over()

    def averages(self) -> dict[str, Tensor]:
        """The averaged unconstrained parameters by name, if they were asked for."""
        return (self._eager or self._engine).averages()

    def _take_block(self, losses: list[float]) -> None:
        self._keep(losses)
        main: Any = self._engine.main
        steps = min(self._task.num_steps - len(losses), self._block, main.at_once)
        new = main.evaluation.leaves[0].new_empty(steps)
        begun = time.perf_counter()
        taken = main.run(len(losses), new, self._weights(steps))
        losses += new[:taken].tolist()
        if time.perf_counter() - begun < _BLOCK_SECONDS:
            self._block *= 2
        self._advance(taken)

    def _take_one(self, losses: list[float]) -> None:
        batch = self._batches.next()
        reason = self._graphs.obstacle() or self._engine.read()
        runner = None if reason else self._graphs.find(batch)
        if not reason and runner and self._good == len(losses) > 0:
            reason = self._difference(runner, batch, losses)
        if reason:
            self._leave(losses, reason)
            return
        self._keep(losses)
        if runner is None:
            losses.append(self._engine.by_svi(len(losses), batch))
            return
        tensors = _tensors(batch, self._task.pair.kwargs)
        losses.append(self._engine.step(runner, len(losses), tensors, self._weights(1)))
        self._advance(1)
        self._last = runner, batch

    def _advance(self, steps: int) -> None:
        objective: Any = self._task.objective
        if hasattr(objective, "num_gradients"):
            objective.num_gradients += steps

    def _weights(self, steps: int) -> list[float]:
        objective: Any = self._task.objective
        if not callable(getattr(objective, "kl_weight", None)):
            return []
        first = objective.num_gradients
        return [float(objective.kl_weight(first + i)) for i in range(steps)]

    def _is_due(self, losses: list[float]) -> bool:
        return (
            len(losses) == self._task.num_steps
            or math.isnan(losses[-1])
            or self._batches.num_bytes > _MOST_BYTES
            or self.budget.is_due(len(losses))
        )

    def _keep(self, losses: list[float]) -> None:
        """Remember where the fit stands, if all is well up to here."""
        if self._good == len(losses) and (self._mark is None or self._mark.taken < self._good):
            with self.budget.spending(len(losses), compared=False):
                self._engine.write()
                evaluation = self._engine.main.evaluation
                self._mark = Checkpoint(
                    len(losses),
                    [*evaluation.leaves, *evaluation.graph.state],
                    self._task.optimizer,
                    self._task.objective,
                    self._engine.averages(),
                )
                self._batches.mark()

    def _check(self, losses: list[float]) -> None:
        known = self._single and not self._graphs.serve(*self._last)
        difference = "" if known else self._difference(*self._last, losses)
        if not difference:
            self._good = len(losses)
            return
        assert self._mark is not None
        first, last = self._mark.taken + 1, len(losses)
        del losses[self._mark.taken :]
        self._mark.restore()
        self._undone = True
        self._batches.rewind()
        seen = ", and callbacks called again, which have seen other losses" * self._task.one_by_one
        warn(
            f"After step {last} the graph of the fit does not repeat an eager run ({difference}). "
            f"It did before step {first}: something that model or guide read has changed in "
            f"between, and the fit did not see it. Steps {first} to {last} are undone and taken "
            f"again eagerly{seen}; so is the rest of the fit. Pass what changes as a tensor "
            "argument, or fit with compile=False."
        )
        note = f"eager from step {first}: its graph did not repeat an eager run after step {last}"
        self._go_on(note, self._mark.means)

    def _leave(self, losses: list[float], reason: str) -> None:
        """Take this step and all others eagerly."""
        warn(
            f"From step {len(losses) + 1} on the fit is not compiled: {reason}. Pass what changes "
            "as a tensor argument, or fit with compile=False."
        )
        self._batches.put_back()
        self._go_on(f"eager from step {len(losses) + 1}: {reason}", self._engine.averages())
        self.take(losses)

    def _go_on(self, note: str, means: Mapping[str, Tensor]) -> None:
        """Take all further steps eagerly."""
        for leaf in self._engine.main.evaluation.trained:
            leaf.grad = torch.zeros_like(leaf)  # as SVI leaves it
        self._eager = SviSteps(self._task, note, self._batches, means)
        self.note = f"{self.note}; {note}"

    def _difference(self, runner: Runner, batch: tuple, losses: list[float]) -> str:
        """What a comparison finds; nothing if graph and program agree."""
        with self.budget.spending(len(losses)):
            if not self._single:
                self._engine.write()
                if not all(map(_same, runner.data, _tensors(batch, self._task.pair.kwargs))):
                    return "an argument was written to"
            return _difference(runner.evaluation, self._task, batch)


def _difference(evaluation: Evaluation, task: Task, batch: tuple) -> str:
    try:
        return evaluation.difference(task.objective, task.pair.at(batch))
    except Exception as error:  # of any type: the program's own
        with random_states_kept():
            found = evaluation.run(evaluation.data_for(task.objective, batch, task.pair.kwargs))
        line = next(iter(str(error).splitlines()), "")
        return "" if torch.isnan(found[0]) else f"it raises {type(error).__name__}: {line}"


def _tensors(args: tuple, kwargs: Mapping[str, Any]) -> list[Tensor]:
    return [x for x in tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor)]


def _same(kept: Tensor, now: Tensor) -> bool:
    return bool(((kept == now) | ((kept != kept) & (now != now))).all())
