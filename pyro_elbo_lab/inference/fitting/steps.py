"""The choice between the two ways to train: compiled graphs, or `pyro.infer.SVI` step by step."""

import time
from typing import Literal

from pyro.optim import PyroOptim

from pyro_elbo_lab.compilation.capture.guard import CaptureError
from pyro_elbo_lab.compilation.captured import Evaluation, evaluate
from pyro_elbo_lab.compilation.leaves import hooked
from pyro_elbo_lab.inference.fitting.graph_steps import GraphSteps
from pyro_elbo_lab.inference.fitting.svi_steps import Steps, SviSteps, Task
from pyro_elbo_lab.inference.fitting.update_rules import Update, update_of
from pyro_elbo_lab.programs.messages import warn

__all__ = ["Compile", "Steps", "Task", "steps_of"]

Compile = Literal["auto"] | bool

LEAST_STEPS = 1000
"""Shorter fits are never compiled unless asked for."""


def steps_of(task: Task, compile: Compile) -> Steps:
    """Choose how to take steps.

    Args:
        task: what is to be fitted.
        compile: True compiles, False does not, "auto" does if it takes less time than it saves.

    Warns:
        UserWarning: compiling was tried and is not possible.
    """
    if compile is False:
        return SviSteps(task, "eager: as asked for")
    if compile == "auto" and task.num_steps < LEAST_STEPS:
        return SviSteps(task, f"eager: {task.num_steps} steps are few")
    started = time.perf_counter()
    try:
        evaluation = evaluate(task.objective, task.pair)
    except CaptureError as error:
        warn(f"The fit is not compiled: eager: {error}.")
        return SviSteps(task, f"eager: {error}")
    if compile == "auto" and not _pays_back(task.num_steps, evaluation.graph.num_nodes):
        note = f"eager: {task.num_steps} steps are too few to pay back compiling them"
        return SviSteps(task, note)
    if not evaluation.trained:
        return SviSteps(task, "eager: the loss depends on no parameter")
    return GraphSteps(task, evaluation, _update(task.optimizer, evaluation), started)


def _update(optimizer: PyroOptim, evaluation: Evaluation) -> Update | str:
    for name, leaf in zip(evaluation.names, evaluation.leaves, strict=True):
        if hooked(leaf):
            return f"parameter '{name}' has a hook on its gradient"
    return update_of(optimizer, evaluation.trained)


def _pays_back(num_steps: int, num_nodes: int) -> bool:
    """An eager run takes about 4 microseconds an operator, compiling 1.5 s and 5 ms an operator."""
    return num_steps * num_nodes * 4e-6 > 1.5 + num_nodes * 5e-3
