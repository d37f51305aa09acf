"""Whole steps of training as one compiled graph: objective, gradients and optimizer."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pyro_elbo_lab.compilation.captured import Evaluation
from pyro_elbo_lab.compilation.leaves import accumulate
from pyro_elbo_lab.compilation.native.leftovers import leftovers_dropped
from pyro_elbo_lab.compilation.native.recording import Feed
from pyro_elbo_lab.compilation.native.runner import checked_runner
from pyro_elbo_lab.inference.fitting.update_rules import Update

__all__ = ["LossRunner", "Trainer"]

_BLOCK_BYTES = 2**22
_MOST_STEPS = 2048


class Trainer:
    """The parameters, optimizer state and data of a fit, where a compiled step works on them.

    Args:
        evaluation: the captured objective.
        update: the optimizer, whose state is shared from now on.
        average_from: the number of the first step whose parameters are averaged; None for no
            average.
        like: another trainer of the same parameters, on arguments of other shapes: they share
            parameters and state.

    Attributes:
        evaluation: the captured objective.
        reason: why steps run as a graph that is not compiled; empty if they are compiled.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        update: Update,
        average_from: int | None = None,
        like: "Trainer | None" = None,
    ) -> None:
        self.evaluation = evaluation
        self._first = like or self
        self._update = update
        self._average_from = average_from
        self._leaves = evaluation.trained
        self._sizes = [leaf.numel() for leaf in self._leaves]
        self._flat: Tensor = like._flat if like else _flatten(self._leaves)
        self._mean: Tensor = like._mean if like else self._flat.clone()
        if like is None:
            self._state = {name: _flatten(parts) for name, parts in update.state.items()}
            update.state = {name: self._parts(flat) for name, flat in self._state.items()}
        else:
            self._state = like._state
        self._data = _own(evaluation.data)
        self._noise = evaluation.graph.noise.allocate()
        self._numbers = self._flat.new_zeros(update.num_scalars + 1)
        inputs = [self._flat, *self._state.values(), self._mean, self._numbers]
        inputs += [*evaluation.untrained, *self._data]
        inputs += [*evaluation.graph.constants, *self._noise]
        module = _step(evaluation, update, average_from is not None, len(inputs))
        refill = partial(evaluation.graph.noise.fill, self._noise)
        self._runner, self.reason = checked_runner(module, inputs, refill, self._written)

    def run(self, first: int, losses: Tensor, weights: Sequence[float]) -> int:
        """Take steps, whose random numbers are drawn in one block.

        Args:
            first: the number of the first step, counted from 0.
            losses: where to write the losses, one a step, contiguous; at most `at_once` of them.
            weights: the weight of the KL terms, one a step; empty if it is not scheduled.

        Returns:
            The steps taken: fewer than asked for if a loss is NaN. Parameters are then those that
            gave the NaN, and its loss is the last.
        """
        saved = [x.clone() for x in self._written]
        position = self._first._update.position()
        steps = len(losses)
        blocks = self.evaluation.graph.noise.block(steps)
        feeds = [Feed(rows, x) for rows, x in zip(blocks, self._noise, strict=True)]
        emits = [Feed(losses, self._runner.outputs[0])]
        self._runner.run(steps, [*feeds, *self._schedules(first, steps, weights)], emits)
        found = torch.isnan(losses).nonzero()
        if not len(found):
            return steps
        good = int(found[0])
        for x, before in zip(self._written, saved, strict=True):
            x.copy_(before)
        self._first._update.return_to(position)
        self._runner.run(good, [*feeds, *self._schedules(first, good, weights[:good])], emits)
        return good + 1

    def step(self, number: int, data: Sequence[Tensor], weights: Sequence[float]) -> float:
        """Take one step on these data, with random numbers as the program draws them.

        Args:
            number: of the step, counted from 0.
            data: tensors of the shapes that were captured.
            weights: the weight of the KL terms, or nothing if it is not scheduled.

        Returns:
            The loss. If it is NaN, the parameters stay as they are.
        """
        saved = [x.clone() for x in self._written]
        position = self._first._update.position()
        _refill(self._data, data)
        for rows, tensor in self._schedules(number, 1, weights):
            tensor.copy_(rows[0])
        self.evaluation.graph.noise.fill(self._noise)
        self._runner.run()
        loss = float(self._runner.outputs[0])
        if math.isnan(loss):
            for x, before in zip(self._written, saved, strict=True):
                x.copy_(before)
            self._first._update.return_to(position)
        return loss

    @property
    def data(self) -> list[Tensor]:
        """The arguments that steps are taken on."""
        return self._data

    @property
    def at_once(self) -> int:
        """How many steps one call of `run` may take."""
        size = sum(x.numel() * x.itemsize for x in self._noise)
        return min(_MOST_STEPS, max(1, _BLOCK_BYTES // max(size, 1)))

    def read_parameters(self, number: int | None = None) -> None:
        """Take the parameters as they are now, which somebody else may have changed.

        Args:
            number: of the step that has done so, if it was one: then they may be averaged.
        """
        self._flat.copy_(_flatten(self._leaves))
        if number is not None and self._average_from is not None and number >= self._average_from:
            self._mean += (self._flat - self._mean) / (number - self._average_from + 1)

    def write_parameters(self) -> None:
        """Give the parameters the values that they have come to."""
        with torch.no_grad():
            for leaf, value in zip(self._leaves, self._parts(self._flat), strict=True):
                leaf.copy_(value)

    def adopt(self, update: Update) -> None:
        """Go on from the state of an optimizer of the same rule and options, which is shared."""
        for name, flat in self._state.items():
            flat.copy_(_flatten(update.state[name]))
            update.state[name] = self._parts(flat)
        self._update = update

    def averages(self) -> list[Tensor]:
        """The mean of each trained parameter, unconstrained, over the steps that are averaged."""
        return [part.clone() for part in self._parts(self._mean)]

    def _parts(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split(self._sizes)
        return [part.view(x.shape) for part, x in zip(parts, self._leaves, strict=True)]

    @property
    def _written(self) -> list[Tensor]:
        return [self._flat, *self._state.values(), self._mean, *self.evaluation.graph.state]

    def _schedules(self, first: int, steps: int, weights: Sequence[float]) -> list[Feed]:
        """What changes from step to step and is known beforehand."""
        numbers = np.arange(first, first + steps)
        averaging = np.zeros((steps, 1))
        if self._average_from is not None:
            averaging[:, 0] = 1 / np.maximum(numbers - self._average_from + 1, 1)
            averaging[numbers < self._average_from] = 0
        rows = np.concatenate([self._first._update.scalars(steps), averaging], 1)
        feeds = [Feed(torch.from_numpy(rows).to(self._numbers), self._numbers)]
        if weights:
            feeds.append(Feed(torch.tensor(weights).to(self._data[-1]), self._data[-1]))
        return feeds


class LossRunner:
    """A compiled objective and its gradients, for steps whose optimizer stays outside.

    Args:
        evaluation: the captured objective.

    Attributes:
        evaluation: the captured objective.
        reason: why the graph is not compiled; empty if it is.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self._data = _own(evaluation.data)
        self._noise = evaluation.graph.noise.allocate()
        inputs = [*evaluation.leaves, *self._data, *evaluation.graph.constants, *self._noise]
        refill = partial(evaluation.graph.noise.fill, self._noise)
        written = evaluation.graph.state
        self._runner, self.reason = checked_runner(evaluation.graph.module, inputs, refill, written)

    @property
    def data(self) -> list[Tensor]:
        """The arguments of the last run."""
        return self._data

    def gradients(self, data: Sequence[Tensor], weights: Sequence[float]) -> float:
        """Add the gradients at these data to those of the parameters, by way of their hooks.

        Args:
            data: tensors of the shapes that were captured.
            weights: the weight of the KL terms, or nothing if it is not scheduled.

        Returns:
            The loss. If it is NaN, what every run writes to stays as it is.
        """
        saved = [x.clone() for x in self.evaluation.graph.state]
        _refill(self._data, data)
        for weight in weights:
            self._data[-1].fill_(weight)
        self.evaluation.graph.noise.fill(self._noise)
        self._runner.run()
        loss, *gradients = self._runner.outputs
        if torch.isnan(loss):
            for x, before in zip(self.evaluation.graph.state, saved, strict=True):
                x.copy_(before)
        else:
            accumulate(self.evaluation.trained, gradients)
        return float(loss)


def _own(data: Sequence[Tensor]) -> list[Tensor]:
    return [x.clone(memory_format=torch.preserve_format) for x in data]


def _refill(kept: Sequence[Tensor], data: Sequence[Tensor]) -> None:
    for one, new in zip(kept, data, strict=False):
        one.copy_(new)


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.detach().reshape(-1) for x in tensors])


@leftovers_dropped()
def _step(evaluation: Evaluation, update: Update, average: bool, num_inputs: int) -> fx.GraphModule:
    """One step: (flat, *state, mean, numbers, *untrained, *rest of the inputs) -> (loss, gradient);
    flat, state and mean are written to."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    inputs: list[Any] = [fx.Proxy(graph.placeholder(f"x{i}"), tracer) for i in range(num_inputs)]
    num_state = len(update.state)
    flat, *state = inputs[: 1 + num_state]
    mean, numbers = inputs[1 + num_state : 3 + num_state]
    rest = iter(inputs[3 + num_state :])
    leaves: list[Any] = []
    offset = 0
    for leaf, has in zip(evaluation.leaves, evaluation.has_gradient, strict=True):
        if not has:
            leaves.append(next(rest))
            continue
        part = torch.ops.aten.slice.Tensor(flat, 0, offset, offset + leaf.numel())
        leaves.append(part.view(leaf.shape))
        offset += leaf.numel()
    inner = evaluation.graph.module.graph
    placeholders = [node for node in inner.nodes if node.op == "placeholder"]
    given = [x.node for x in (*leaves, *rest)]
    outputs: Any = graph.graph_copy(inner, dict(zip(placeholders, given, strict=True)))
    results: list[Any] = [fx.Proxy(node, tracer) for node in outputs]
    loss, *gradients = results
    gradient: Any = torch.cat([g.reshape(-1) for g in gradients])
    named = dict(zip(update.state, state, strict=True))
    moved, changed = update.rule.update(flat, gradient, named, numbers, update.options)
    if average:
        mean.copy_(mean + numbers[update.num_scalars] * (moved - mean))
    for name, tensor in named.items():
        if changed[name] is not tensor:
            tensor.copy_(changed[name])
    flat.copy_(moved)
    graph.output((loss.node, gradient.node))
    return fx.GraphModule(nn.Module(), graph)
