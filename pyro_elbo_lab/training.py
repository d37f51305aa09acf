"""Whole steps of training as one compiled graph: objective, gradients and optimiser."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pyro_elbo_lab.evaluation import Evaluation
from pyro_elbo_lab.inductor import checked_runner
from pyro_elbo_lab.leftovers import leftovers_dropped
from pyro_elbo_lab.optimizers import Update
from pyro_elbo_lab.recording import Feed

__all__ = ["Trainer"]

_BLOCK_BYTES = 2**22
_MOST_STEPS = 2048


class Trainer:
    """The parameters, optimiser state and data of a fit, where a compiled step works on them.

    Args:
        evaluation: the captured objective.
        update: the optimiser.
        weight: from the number of a step, counted from 0, to the weight of the KL terms; None if
            this is not scheduled.
        average_from: the number of the first step whose parameters are averaged; None for no
            average.
        like: another trainer of the same parameters, on arguments of other shapes: they share
            parameters and state.

    Attributes:
        reason: why steps run as a graph that is not compiled; empty if they are compiled.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        update: Update,
        weight: Callable[[int], float] | None = None,
        average_from: int | None = None,
        like: "Trainer | None" = None,
    ) -> None:
        self._evaluation = evaluation
        self._update = update
        self._weight = weight
        self._average_from = average_from
        self._leaves = evaluation.trained
        self._sizes = [leaf.numel() for leaf in self._leaves]
        self._flat: Tensor = like._flat if like else _flatten(self._leaves)
        names = update.rule.state
        self._state: list[Tensor] = (
            like._state if like else [_flatten(update.state[n]) for n in names]
        )
        self._mean: Tensor = like._mean if like else self._flat.clone()
        self._data = [x.clone(memory_format=torch.preserve_format) for x in evaluation.data]
        self._noise = evaluation.graph.noise.allocate()
        self._numbers = self._flat.new_zeros(update.num_scalars + 1)
        inputs = [self._flat, *self._state, self._mean, self._numbers]
        inputs += [*evaluation.untrained, *self._data]
        inputs += [*evaluation.graph.constants, *self._noise]
        module = _step(evaluation, update, average_from is not None, len(inputs))
        refill = partial(evaluation.graph.noise.fill, self._noise)
        self._runner, self.reason = checked_runner(module, inputs, refill, self._written)

    def run(self, first: int, losses: Tensor) -> int:
        """Take steps, whose random numbers are drawn in one block.

        Args:
            first: the number of the first step.
            losses: where to write the losses, one a step, contiguous; at most `at_once` of them.

        Returns:
            The steps taken: fewer than asked for if a loss is NaN. Parameters are then those that
            gave the NaN, and its loss is the last.
        """
        saved = [x.clone() for x in self._written]
        steps = len(losses)
        blocks = self._evaluation.graph.noise.block(steps)
        feeds = [Feed(rows, x) for rows, x in zip(blocks, self._noise, strict=True)]
        feeds += self._schedules(first, steps)
        emits = [Feed(losses, self._runner.outputs[0])]
        self._runner.run(steps, feeds, emits)
        found = torch.isnan(losses).nonzero()
        if not len(found):
            return steps
        good = int(found[0])
        for x, before in zip(self._written, saved, strict=True):
            x.copy_(before)
        self._runner.run(good, feeds, emits)
        return good + 1

    def step(self, number: int, data: Sequence[Tensor]) -> float:
        """Take one step on these data, with random numbers as the program draws them.

        Args:
            number: of the step.
            data: tensors of the shapes that were captured.

        Returns:
            The loss. If it is NaN, the parameters stay as they are.
        """
        saved = [x.clone() for x in self._written]
        for kept, new in zip(self._data, data, strict=False):
            kept.copy_(new)
        for rows, tensor in self._schedules(number, 1):
            tensor.copy_(rows[0])
        self._evaluation.graph.noise.fill(self._noise)
        self._runner.run()
        loss = float(self._runner.outputs[0])
        if math.isnan(loss):
            for x, before in zip(self._written, saved, strict=True):
                x.copy_(before)
        return loss

    def is_for(self, arguments: Sequence[Any]) -> bool:
        """Whether the graph is right for the values of these arguments, see `Evaluation.is_for`."""
        return self._evaluation.is_for(arguments)

    @property
    def at_once(self) -> int:
        """How many steps one call of `run` may take."""
        size = sum(x.numel() * x.itemsize for x in self._noise)
        return min(_MOST_STEPS, max(1, _BLOCK_BYTES // max(size, 1)))

    def read_parameters(self) -> None:
        """Take the parameters as they are now, which somebody else may have changed."""
        self._flat.copy_(_flatten(self._leaves))

    def write_parameters(self) -> None:
        """Give the parameters the values that they have come to."""
        with torch.no_grad():
            for leaf, value in zip(self._leaves, self._parts(self._flat), strict=True):
                leaf.copy_(value)

    def write_state(self) -> None:
        """Give the optimiser the state that it has come to."""
        for name, flat in zip(self._update.rule.state, self._state, strict=True):
            self._update.state[name] = [part.clone() for part in self._parts(flat)]
        self._update.write_back(self._update)

    def averages(self) -> list[Tensor]:
        """The mean of each trained parameter, unconstrained, over the steps that are averaged."""
        return [part.clone() for part in self._parts(self._mean)]

    def _parts(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split(self._sizes)
        return [part.view(x.shape) for part, x in zip(parts, self._leaves, strict=True)]

    @property
    def _written(self) -> list[Tensor]:
        return [self._flat, *self._state, self._mean, *self._evaluation.graph.state]

    def _schedules(self, first: int, steps: int) -> list[Feed]:
        """What changes from step to step and is known beforehand."""
        numbers = np.arange(first, first + steps)
        averaging = np.zeros((steps, 1))
        if self._average_from is not None:
            averaging[:, 0] = 1 / np.maximum(numbers - self._average_from + 1, 1)
            averaging[numbers < self._average_from] = 0
        rows = np.concatenate([self._update.scalars(steps), averaging], 1)
        feeds = [Feed(torch.from_numpy(rows).to(self._numbers), self._numbers)]
        if self._weight is not None:
            weights = torch.tensor([self._weight(int(i)) for i in numbers])
            feeds.append(Feed(weights.to(self._data[-1]), self._data[-1]))
        return feeds


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.detach().reshape(-1) for x in tensors])


@leftovers_dropped()
def _step(evaluation: Evaluation, update: Update, average: bool, num_inputs: int) -> fx.GraphModule:
    """One step: (flat, *state, mean, numbers, *untrained, *rest of the inputs) -> (loss, gradient);
    flat, state and mean are written to."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    inputs: list[Any] = [fx.Proxy(graph.placeholder(f"x{i}"), tracer) for i in range(num_inputs)]
    num_state = len(update.rule.state)
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
    named = dict(zip(update.rule.state, state, strict=True))
    moved, changed = update.rule.update(flat, gradient, named, numbers, update.options)
    if average:
        mean.copy_(mean + numbers[update.num_scalars] * (moved - mean))
    for name, tensor in named.items():
        if changed[name] is not tensor:
            tensor.copy_(changed[name])
    flat.copy_(moved)
    graph.output((loss.node, gradient.node))
    return fx.GraphModule(nn.Module(), graph)
