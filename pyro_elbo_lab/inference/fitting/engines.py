"""Steps by a graph: with the optimizer in it, or outside of it."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

from pyro.infer.util import zero_grads
from torch import Tensor

from pyro_elbo_lab.compilation.captured import Evaluation
from pyro_elbo_lab.inference.fitting.svi_steps import Average, Task, svi_step
from pyro_elbo_lab.inference.fitting.trainer import LossRunner, Trainer
from pyro_elbo_lab.inference.fitting.update_rules import Update, move_schedules, register, update_of

__all__ = ["Engine", "Inside", "Outside", "Runner"]

Runner = Trainer | LossRunner


class Engine(Protocol):
    """Takes steps by graphs, one for each kind of arguments, of the same parameters.

    Attributes:
        calls_hooks: whether hooks on gradients are called.
    """

    calls_hooks: bool

    @property
    def main(self) -> Runner:
        """The graph of the first arguments."""

    def runner(self, evaluation: Evaluation) -> Runner:
        """Steps on arguments of other shapes."""

    def step(self, runner: Any, number: int, data: Sequence[Tensor], weights: list[float]) -> float:
        """Take a step and return its loss. If it is NaN, parameters stay as they are."""

    def by_svi(self, number: int, batch: tuple) -> float:
        """Take a step without a graph."""

    def read(self) -> str:
        """Take over what somebody else has done to parameters and optimizer; or why steps cannot
        go on by these graphs."""

    def write(self) -> None:
        """Bring parameters and optimizer up to date."""

    def hand_over(self) -> None:
        """Bring them up to date for somebody else who goes on with them."""

    def averages(self) -> dict[str, Tensor]:
        """The averaged unconstrained parameters by name, if they were asked for."""


class Inside:
    """Steps whose optimizer is part of the graph.

    Args:
        task: what is to be fitted.
        evaluation: the captured objective.
        update: the optimizer's formula.
    """

    calls_hooks = False

    def __init__(self, task: Task, evaluation: Evaluation, update: Update) -> None:
        self._main = Trainer(evaluation, update, task.average_from)
        self._task = task
        self._update = update
        self._svi = task.svi()
        self._looked_on = task.one_by_one or task.varying
        self.write()

    @property
    def main(self) -> Trainer:
        """The graph of the first arguments."""
        return self._main

    def runner(self, evaluation: Evaluation) -> Trainer:
        """Steps on arguments of other shapes."""
        return Trainer(evaluation, self._update, self._task.average_from, like=self._main)

    def step(
        self, runner: Trainer, number: int, data: Sequence[Tensor], weights: list[float]
    ) -> float:
        """Take a step and return its loss. If it is NaN, parameters stay as they are."""
        loss = runner.step(number, data, weights)
        if self._looked_on:
            self._main.write_parameters()
            self._update.keep_up()
        return loss

    def by_svi(self, number: int, batch: tuple) -> float:
        """Take a step without a graph."""
        loss = svi_step(self._svi, self._task, batch)
        self._main.read_parameters(number)
        return loss

    def read(self) -> str:
        """Take over what somebody else has done to parameters and optimizer; or why steps cannot
        go on by these graphs."""
        if not self._update.is_current(self._task.optimizer):
            found = update_of(self._task.optimizer, self._main.evaluation.trained)
            if isinstance(found, str):
                return f"the optimizer was changed: {found}"
            if not found.is_like(self._update):
                return "options of the optimizer other than its learning rate were changed"
            self._main.adopt(found)
            found.write_back()
            self._update = found
        self._main.read_parameters()
        return ""

    def write(self) -> None:
        """Bring parameters and optimizer up to date."""
        self._main.write_parameters()
        self._update.write_back()

    def hand_over(self) -> None:
        """Bring them up to date for somebody else who goes on with them."""
        for name, parts in self._update.state.items():
            self._update.state[name] = [part.clone() for part in parts]
        self.write()

    def averages(self) -> dict[str, Tensor]:
        """The averaged unconstrained parameters by name, if they were asked for."""
        if self._task.average_from is None:
            return {}
        evaluation = self._main.evaluation
        pairs = zip(evaluation.names, evaluation.has_gradient, strict=True)
        names = [name for name, has in pairs if has]
        return dict(zip(names, self._main.averages(), strict=True))


class Outside:
    """Steps whose loss and gradients are a graph, and whose optimizer is not.

    Args:
        task: what is to be fitted.
        evaluation: the captured objective.
    """

    calls_hooks = True

    def __init__(self, task: Task, evaluation: Evaluation) -> None:
        self._main = LossRunner(evaluation)
        self._task = task
        self._svi = task.svi()
        self._average = Average(task.average_from)
        register(task.optimizer, evaluation.leaves)

    @property
    def main(self) -> LossRunner:
        """The graph of the first arguments."""
        return self._main

    def runner(self, evaluation: Evaluation) -> LossRunner:
        """Steps on arguments of other shapes."""
        return LossRunner(evaluation)

    def step(
        self, runner: LossRunner, number: int, data: Sequence[Tensor], weights: list[float]
    ) -> float:
        """Take a step and return its loss. If it is NaN, parameters stay as they are."""
        loss = runner.gradients(data, weights)
        if not math.isnan(loss):
            self._task.optimizer(runner.evaluation.leaves)
            move_schedules(self._task.optimizer, loss)
            self._count(number)
        zero_grads(runner.evaluation.trained)
        return loss

    def by_svi(self, number: int, batch: tuple) -> float:
        """Take a step without a graph."""
        loss = svi_step(self._svi, self._task, batch)
        self._count(number)
        return loss

    def read(self) -> str:
        """Parameters and optimizer are the only ones."""
        return ""

    def write(self) -> None:
        """They are up to date."""

    def hand_over(self) -> None:
        """They are up to date."""

    def averages(self) -> dict[str, Tensor]:
        """The averaged unconstrained parameters by name, if they were asked for."""
        return self._average.means

    def _count(self, number: int) -> None:
        if self._average.counts(number):
            evaluation = self._main.evaluation
            self._average.add(number, dict(zip(evaluation.names, evaluation.leaves, strict=True)))
