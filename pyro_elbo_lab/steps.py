"""The two ways to train: whole steps as a compiled graph, or `pyro.infer.SVI` step by step."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from pyro.infer import ELBO, SVI
from pyro.optim import PyroLRScheduler, PyroOptim
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_elbo_lab.compiled import CompiledELBO, signature
from pyro_elbo_lab.evaluation import Evaluation, agree, evaluate, parameters
from pyro_elbo_lab.guard import CaptureError
from pyro_elbo_lab.leaves import hooked
from pyro_elbo_lab.optimizers import Update, update_of
from pyro_elbo_lab.state import random_states_kept
from pyro_elbo_lab.training import Trainer

__all__ = ["Compile", "Steps", "Task", "steps_of"]

Program = Callable[..., Any]
Compile = Literal["auto"] | bool

LEAST_STEPS = 1000
"""Shorter fits are never compiled unless asked for."""


class Task(NamedTuple):
    """What is to be fitted.

    Attributes:
        model: a Pyro model.
        guide: a Pyro guide.
        objective: the loss.
        optimizer: as SVI takes it.
        batches: positional arguments, one tuple a step, without end.
        first: the first of them.
        kwargs: keyword arguments of every step.
        varying: whether arguments differ from step to step.
        average_from: the step from which parameters are averaged, or None.
        num_steps: how many steps are planned.
        one_by_one: whether somebody looks on after every step.
    """

    model: Program
    guide: Program
    objective: ELBO
    optimizer: PyroOptim
    batches: Iterator[tuple]
    first: tuple
    kwargs: Mapping[str, Any]
    varying: bool
    average_from: int | None
    num_steps: int
    one_by_one: bool


class Steps(NamedTuple):
    """A way to take steps.

    Attributes:
        take: (number of the first step, how many at most) -> losses of the steps taken, of which
            the last may be NaN.
        settle: brings the parameters and the optimiser up to date.
        averages: the averaged unconstrained parameters by name, if they were asked for.
        note: how steps are taken, and why.
        seconds: what it took to capture and compile.
    """

    take: Callable[[int, int], list[float]]
    settle: Callable[[], None]
    averages: Callable[[], dict[str, Tensor]]
    note: str
    seconds: float


def steps_of(task: Task, compile: Compile) -> Steps:
    """Choose how to take steps.

    Args:
        task: what is to be fitted.
        compile: True compiles, False does not, "auto" does if it takes less time than it saves.

    Warns:
        UserWarning: compiling was tried and is not possible.
    """
    if compile is False:
        return _by_svi(task, task.objective, "eager: as asked for")
    if compile == "auto" and task.num_steps < LEAST_STEPS:
        return _by_svi(task, task.objective, f"eager: {task.num_steps} steps are few")
    started = time.perf_counter()
    try:
        evaluation = evaluate(task.objective, task.model, task.guide, task.first, task.kwargs)
    except CaptureError as error:
        return _by_svi(task, task.objective, _warned(f"eager: {error}"))
    if compile == "auto" and not _pays_back(task.num_steps, evaluation.graph.num_nodes):
        note = f"eager: {task.num_steps} steps are too few to pay back compiling them"
        return _by_svi(task, task.objective, note)
    update = _update(task.optimizer, evaluation)
    if isinstance(update, str):
        note = f"compiled loss, with the optimiser outside of it: {update}"
        return _by_svi(task, CompiledELBO(task.objective), note)
    return _by_graph(task, evaluation, update, started)


def _update(optimizer: PyroOptim, evaluation: Evaluation) -> Update | str:
    for name, leaf in zip(evaluation.names, evaluation.leaves, strict=True):
        if hooked(leaf):
            return f"parameter '{name}' has a hook on its gradient"
    return update_of(optimizer, evaluation.trained) if evaluation.trained else "no parameter"


def _warned(note: str) -> str:
    warnings.warn(f"The fit is not compiled: {note}.", stacklevel=5)
    return note


def _pays_back(num_steps: int, num_nodes: int) -> bool:
    """An eager run takes about 4 microseconds an operator, compiling 1.5 s and 5 ms an operator."""
    return num_steps * num_nodes * 4e-6 > 1.5 + num_nodes * 5e-3


def _by_svi(task: Task, objective: ELBO, note: str) -> Steps:
    svi = SVI(task.model, task.guide, task.optimizer, loss=objective)
    means: dict[str, Tensor] = {}

    def take(first: int, most: int) -> list[float]:
        loss = svi.step(*next(task.batches), **task.kwargs)
        if isinstance(task.optimizer, PyroLRScheduler):
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
            by_loss = task.optimizer.pt_scheduler_constructor is plateau
            task.optimizer.step(loss) if by_loss else task.optimizer.step()
        if task.average_from is not None and first >= task.average_from:
            for name, leaf in _leaves(task).items():
                mean = means.setdefault(name, leaf.clone())
                mean += (leaf - mean) / (first - task.average_from + 1)
        return [loss]

    return Steps(take, lambda: None, lambda: means, note, 0.0)


def _leaves(task: Task) -> dict[str, Tensor]:
    with random_states_kept():
        names, leaves = parameters(
            task.objective, task.model, task.guide, task.first, dict(task.kwargs)
        )
    return {name: leaf.detach() for name, leaf in zip(names, leaves, strict=True)}


def _by_graph(task: Task, evaluation: Evaluation, update: Update, started: float) -> Steps:
    weight = getattr(task.objective, "kl_weight", None)
    offset = getattr(task.objective, "num_gradients", 0)
    average_from = None if task.average_from is None else offset + task.average_from

    def trainer(evaluation: Evaluation, like: Trainer | None = None) -> Trainer:
        schedule = weight if callable(weight) else None
        with random_states_kept():
            return Trainer(evaluation, update, schedule, average_from, like)

    main = trainer(evaluation)
    if main.reason:
        _warned(f"its steps run as a graph that is not compiled: {main.reason}")
    numbers = evaluation.numbers
    trainers = {(_signature(task, task.first, numbers.snapshot()), 0): main}
    block = 64
    taken_before = update.taken

    def one_by_one(first: int, most: int) -> list[float]:
        batch = next(task.batches)
        key = _signature(task, batch, numbers.snapshot()), 0
        while key in trainers and not trainers[key].is_for(tree_leaves((batch, dict(task.kwargs)))):
            key = key[0], key[1] + 1
        if key not in trainers:
            main.write_parameters()
            again = evaluate(task.objective, task.model, task.guide, batch, task.kwargs)
            trainers[key] = trainer(again, like=main)
        if task.one_by_one:
            main.read_parameters()
        loss = trainers[key].step(offset + first, _tensors(batch, task.kwargs))
        if task.one_by_one:
            main.write_parameters()
        return [loss]

    def many(first: int, most: int) -> list[float]:
        nonlocal block
        steps = min(most, block, main.at_once)
        losses = evaluation.leaves[0].new_empty(steps)
        begun = time.perf_counter()
        taken = main.run(offset + first, losses)
        found = losses[:taken].tolist()
        if time.perf_counter() - begun < _BLOCK_SECONDS:
            block *= 2
        return found

    def settle() -> None:
        if task.one_by_one:
            main.read_parameters()  # the last callback may have changed them
        main.write_parameters()
        main.write_state()
        if hasattr(task.objective, "num_gradients"):
            task.objective.num_gradients = offset + update.taken - taken_before
        _recheck(task, evaluation)

    note = f"compiled: whole steps as one graph of {evaluation.graph.num_nodes} operators"
    note = f"{note}, not compiled: {main.reason}" if main.reason else note
    one = task.varying or task.one_by_one
    names = [n for n, has in zip(evaluation.names, evaluation.has_gradient, strict=True) if has]

    def averages() -> dict[str, Tensor]:
        if task.average_from is None:
            return {}
        return dict(zip(names, main.averages(), strict=True))

    seconds = time.perf_counter() - started
    return Steps(one_by_one if one else many, settle, averages, note, seconds)


_BLOCK_SECONDS = 0.1


def _signature(task: Task, batch: tuple, around: Any) -> Any:
    return signature(batch, dict(task.kwargs), task.model, task.guide, around)


def _tensors(args: tuple, kwargs: Mapping[str, Any]) -> list[Tensor]:
    return [x for x in tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor)]


def _recheck(task: Task, evaluation: Evaluation) -> None:
    """Once more compare the graph with an eager run, where the fit has ended."""
    kwargs = dict(task.kwargs)
    if callable(getattr(task.objective, "kl_weight", None)):
        return  # the data hold the first step's weight
    with random_states_kept():
        eager = evaluation.eager(task.objective, task.model, task.guide, task.first, kwargs)
    with random_states_kept():
        found = evaluation.run()
    if not all(map(agree, found, eager)):
        warnings.warn(
            "After the fit its graph no longer repeats an eager run (losses "
            f"{float(found[0]):.7g} and {float(eager[0]):.7g}): something that model or guide read "
            "has changed in the meantime, and the fit did not see it.",
            stacklevel=6,
        )
