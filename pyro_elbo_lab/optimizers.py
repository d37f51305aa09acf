"""Optimisers as formulas on one flat vector of parameters, so that a graph can hold the update.

Each `Rule` is what an optimiser of PyTorch or Pyro does to each element. Numbers that change from
step to step, the learning rate and the bias corrections, are computed outside in double precision
and fed to the graph, one row a step.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

__all__ = ["Rule", "Update", "update_of"]

Options = Mapping[str, Any]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Rule:
    """An optimiser.

    Attributes:
        state: names of its state, as PyTorch calls it, each of the shape of the parameter.
        scalars: (step numbers from 1, learning rates, options) -> what changes from step to step,
            (steps, n).
        update: (parameter, gradient, state, row of scalars, options) -> parameter and state.
        unsupported: options that have to be false.
    """

    state: tuple[str, ...]
    scalars: Callable[[np.ndarray, np.ndarray, Options], np.ndarray]
    update: Callable[[Tensor, Tensor, State, Tensor, Options], tuple[Tensor, State]]
    unsupported: tuple[str, ...] = ("maximize", "amsgrad")


@dataclass
class Update:
    """A rule with the options that it was given, and where it stands.

    Attributes:
        rule: the optimiser.
        options: its options.
        state: of all parameters, by name one tensor a leaf.
        taken: the number of steps so far.
        rates: the learning rates of the next n steps; every call moves on.
        write_back: gives state and rates to the optimiser that they came from.
    """

    rule: Rule
    options: Options
    state: dict[str, list[Tensor]]
    taken: int
    rates: Callable[[int], np.ndarray]
    write_back: Callable[["Update"], None]

    @property
    def num_scalars(self) -> int:
        """How many numbers a step is fed."""
        return self.rule.scalars(np.ones(1), np.ones(1), self.options).shape[1]

    def scalars(self, steps: int) -> np.ndarray:
        """What the next steps are fed, (steps, n); moves on."""
        numbers = np.arange(self.taken + 1, self.taken + steps + 1, dtype=float)
        self.taken += steps
        return self.rule.scalars(numbers, self.rates(steps), self.options)


def update_of(optimizer: PyroOptim, leaves: Sequence[Tensor]) -> Update | str:
    """An optimiser of Pyro as a formula, or why it is none.

    What the optimiser has learnt about the parameters in earlier steps is taken over, and
    `write_back` gives it what it has learnt since.

    Args:
        optimizer: as `pyro.infer.SVI` takes it: Adam, AdamW, SGD or ClippedAdam of `pyro.optim`,
            also under a learning rate schedule of `pyro.optim`, with one set of options for all
            parameters.
        leaves: the unconstrained parameters.
    """
    if callable(optimizer.pt_optim_args):
        return "its options differ from parameter to parameter"
    if optimizer.pt_clip_args:
        return "it clips gradients parameter by parameter"
    if any(leaf.dtype != leaves[0].dtype or leaf.device != leaves[0].device for leaf in leaves):
        return "parameters have more than one type or device"
    for leaf in leaves:
        if leaf not in optimizer.optim_objs:
            optimizer.optim_objs[leaf] = optimizer._get_optim(leaf)
            optimizer.grad_clip[leaf] = None
    schedulers = [optimizer.optim_objs[leaf] for leaf in leaves]
    optimizers = [getattr(found, "optimizer", found) for found in schedulers]
    kind, group = type(optimizers[0]), optimizers[0].param_groups[0]
    rule = _RULES.get(kind)
    if rule is None:
        return f"{kind.__name__} has no formula here (Adam, AdamW, SGD and ClippedAdam have)"
    for name in rule.unsupported:
        if group.get(name):
            return f"{kind.__name__} with {name}={group[name]} has no formula here"
    scheduled = schedulers[0] is not optimizers[0]
    if isinstance(schedulers[0], torch.optim.lr_scheduler.ReduceLROnPlateau):
        return "its learning rate depends on the losses"
    if isinstance(group["lr"], Tensor):
        return "its learning rate is a tensor"
    states = [o.state.get(leaf, {}) for o, leaf in zip(optimizers, leaves, strict=True)]
    steps = {int(state.get("step", 1)) if state else 0 for state in states}
    if len(steps) != 1:
        return "it has taken more steps on some parameters than on others"
    state = {
        name: [
            torch.zeros_like(leaf) if own.get(name) is None else own[name]
            for own, leaf in zip(states, leaves, strict=True)
        ]
        for name in rule.state
    }

    def write_back(update: Update) -> None:
        for i, (leaf, own) in enumerate(zip(leaves, optimizers, strict=True)):
            own.state[leaf] = {name: update.state[name][i] for name in rule.state}
            if kind is not torch.optim.SGD:
                counted = kind is ClippedAdam
                own.state[leaf]["step"] = (
                    update.taken if counted else torch.tensor(float(update.taken))
                )
            own.param_groups[0]["lr"] = group["lr"]
            if scheduled and i:
                schedulers[i].load_state_dict(schedulers[0].state_dict())

    rates = _scheduled(schedulers[0]) if scheduled else _falling(group)
    return Update(rule, dict(group), state, steps.pop(), rates, write_back)


def _falling(group: dict[str, Any]) -> Callable[[int], np.ndarray]:
    """A fixed rate, or ClippedAdam's, which falls by a factor before every step."""

    def rates(steps: int) -> np.ndarray:
        factor = group.get("lrd", 1.0)
        found = group["lr"] * factor ** np.arange(1, steps + 1, dtype=float)
        if steps:
            group["lr"] = float(found[-1])
        return found

    return rates


def _scheduled(scheduler: Any) -> Callable[[int], np.ndarray]:
    def rates(steps: int) -> np.ndarray:
        found = np.empty(steps)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch wants to see the optimiser step
            for i in range(steps):
                found[i] = scheduler.optimizer.param_groups[0]["lr"]
                scheduler.step()
        return found

    return rates


def _adam_scalars(step: np.ndarray, rate: np.ndarray, options: Options) -> np.ndarray:
    beta1, beta2 = options["betas"]
    corrections = 1 - beta1**step, np.sqrt(1 - beta2**step)
    return np.stack([rate / corrections[0], corrections[1], rate], -1)


def _moments(grad: Tensor, state: State, options: Options) -> State:
    beta1, beta2 = options["betas"]
    first = beta1 * state["exp_avg"] + (1 - beta1) * grad
    spread = grad - first if options.get("centered_variance") else grad
    second = beta2 * state["exp_avg_sq"] + (1 - beta2) * spread * spread
    return {"exp_avg": first, "exp_avg_sq": second}


def _adam(
    p: Tensor, grad: Tensor, state: State, scalars: Tensor, options: Options
) -> tuple[Tensor, State]:
    if options["weight_decay"]:
        grad = grad + options["weight_decay"] * p
    state = _moments(grad, state, options)
    denominator = state["exp_avg_sq"].sqrt() / scalars[1] + options["eps"]
    return p - scalars[0] * state["exp_avg"] / denominator, state


def _adamw(
    p: Tensor, grad: Tensor, state: State, scalars: Tensor, options: Options
) -> tuple[Tensor, State]:
    decayed = p * (1 - scalars[2] * options["weight_decay"])
    return _adam(decayed, grad, state, scalars, {**options, "weight_decay": 0})


def _clipped_adam(
    p: Tensor, grad: Tensor, state: State, scalars: Tensor, options: Options
) -> tuple[Tensor, State]:
    if math.isfinite(options["clip_norm"]):
        grad = grad.clamp(-options["clip_norm"], options["clip_norm"])
    if options["weight_decay"]:
        grad = grad + options["weight_decay"] * p
    state = _moments(grad, state, options)
    denominator = state["exp_avg_sq"].sqrt() + options["eps"]
    return p - scalars[0] * scalars[1] * state["exp_avg"] / denominator, state


def _sgd_scalars(step: np.ndarray, rate: np.ndarray, options: Options) -> np.ndarray:
    """PyTorch's first momentum is the gradient, undampened."""
    kept = np.where(step == 1, 1.0, 1 - options["dampening"])
    return np.stack([rate, kept], -1)


def _sgd(
    p: Tensor, grad: Tensor, state: State, scalars: Tensor, options: Options
) -> tuple[Tensor, State]:
    if options["weight_decay"]:
        grad = grad + options["weight_decay"] * p
    momentum = options["momentum"]
    if not momentum:
        return p - scalars[0] * grad, state
    buffer = momentum * state["momentum_buffer"] + scalars[1] * grad
    direction = grad + momentum * buffer if options["nesterov"] else buffer
    return p - scalars[0] * direction, {"momentum_buffer": buffer}


_MOMENTS = ("exp_avg", "exp_avg_sq")

_RULES: dict[Any, Rule] = {
    torch.optim.Adam: Rule(_MOMENTS, _adam_scalars, _adam),
    torch.optim.AdamW: Rule(_MOMENTS, _adam_scalars, _adamw),
    ClippedAdam: Rule(_MOMENTS, _adam_scalars, _clipped_adam),
    torch.optim.SGD: Rule(("momentum_buffer",), _sgd_scalars, _sgd),
}
