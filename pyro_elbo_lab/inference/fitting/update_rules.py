"""Optimizers as formulas on one flat vector of parameters, so that a graph can hold the update.

Each `Rule` is what an optimizer of PyTorch or Pyro does to each element. Numbers that change from
step to step, the learning rate and the bias corrections, are computed outside in double precision
and fed to the graph, one row a step.
"""

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyro
import torch
from pyro.optim import PyroLRScheduler, PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

__all__ = ["Rule", "Update", "load_state", "move_schedules", "register", "state_of", "update_of"]

Options = Mapping[str, Any]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Rule:
    """An optimizer.

    Attributes:
        state: names of its state, as PyTorch calls it, each of the shape of the parameter.
        scalars: (step numbers from 1, learning rates, options) -> what changes from step to step,
            (steps, n).
        update: (parameter, gradient, state, row of scalars, options) -> parameter and state.
        counts: whether the state has the number of steps, as a tensor or as a number.
        unsupported: options that have to be false.
    """

    state: tuple[str, ...]
    scalars: Callable[[np.ndarray, np.ndarray, Options], np.ndarray]
    update: Callable[[Tensor, Tensor, State, Tensor, Options], tuple[Tensor, State]]
    counts: Literal["", "tensor", "number"] = ""
    unsupported: tuple[str, ...] = ("maximize", "amsgrad")


class Update:
    """A rule with the options that it was given, and where it stands: what Pyro's optimizers of the
    single parameters hold.

    Args:
        rule: the optimizer.
        leaves: the unconstrained parameters.
        held: what a `PyroOptim` holds for each of them, an optimizer or a schedule around one.

    Attributes:
        rule: the optimizer.
        options: its options.
        state: of all parameters, by name one tensor a leaf.
        taken: the number of steps so far.
    """

    def __init__(self, rule: Rule, leaves: Sequence[Tensor], held: Sequence[Any]) -> None:
        self.rule = rule
        self._leaves = list(leaves)
        self._held = list(held)
        self._own = [_optimizer(one) for one in held]
        self._group = self._own[0].param_groups[0]
        self.options: Options = dict(self._group)
        self._rates = _scheduled(held[0]) if held[0] is not self._own[0] else _falling(self._group)
        self.taken = _steps(self._own[0].state.get(self._leaves[0]))
        self.state = {name: self._state_of(name) for name in rule.state if self._has(name)}
        self._steps = torch.full((len(self._leaves),), float(self.taken))

    @property
    def num_scalars(self) -> int:
        """How many numbers a step is fed."""
        return self.rule.scalars(np.ones(1), np.ones(1), self.options).shape[1]

    def scalars(self, steps: int) -> np.ndarray:
        """What the next steps are fed, (steps, n); moves on."""
        numbers = np.arange(self.taken + 1, self.taken + steps + 1, dtype=float)
        self.taken += steps
        return self.rule.scalars(numbers, self._rates(steps), self.options)

    def position(self) -> tuple[int, Any, dict[str, Any]]:
        """Its position, for `return_to`."""
        scheduled = self._held[0] is not self._own[0]
        return self.taken, self._group["lr"], self._held[0].state_dict() if scheduled else {}

    def return_to(self, position: tuple[int, Any, dict[str, Any]]) -> None:
        """Stand where it stood, but for the state."""
        self.taken, self._group["lr"], schedule = position
        if schedule:
            self._held[0].load_state_dict(schedule)

    def write_back(self) -> None:
        """Give the optimizers the state, which they share from now on, and where it stands."""
        for i, (leaf, own) in enumerate(zip(self._leaves, self._own, strict=True)):
            state: dict[str, Any] = {name: self.state[name][i] for name in self.state}
            if self.rule.counts and self.taken:
                state["step"] = self._steps[i]
            if self.taken and state:
                own.state[leaf] = state
            if i and self._held[i] is not own:
                self._held[i].load_state_dict(copy.deepcopy(self._held[0].state_dict()))
        self._count()

    def keep_up(self) -> None:
        """What `write_back` does, if it was called before and one step was taken since."""
        if self.state and not self._own[0].state.get(self._leaves[0]):
            self.write_back()
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for held, own in zip(self._held[1:], self._own[1:], strict=True):
                if held is not own:
                    held.step()
        self._count()

    def _count(self) -> None:
        self._steps.fill_(self.taken)
        for leaf, own in zip(self._leaves, self._own, strict=True):
            own.param_groups[0]["lr"] = self._group["lr"]
            if self.rule.counts == "number" and leaf in own.state:
                own.state[leaf]["step"] = self.taken

    def is_like(self, other: "Update") -> bool:
        """Whether another one has the same formula."""
        return self.rule is other.rule and _same_options(self.options, other.options)

    def is_current(self, optimizer: PyroOptim) -> bool:
        """Whether the optimizers are as the last step left them, but for the learning rate, which
        is read anew at every step."""
        return (
            all(
                optimizer.optim_objs.get(p) is o
                for p, o in zip(self._leaves, self._held, strict=True)
            )
            and not any(optimizer.grad_clip.get(leaf) for leaf in self._leaves)
            and self._own[0].param_groups[0] is self._group
            and all(_same_options(own.param_groups[0], self.options) for own in self._own)
            and all(own.param_groups[0]["lr"] == self._group["lr"] for own in self._own)
            and all(self._has_state(i) for i in range(len(self._leaves)))
            and bool((self._steps == self.taken).all())
        )

    def _has_state(self, i: int) -> bool:
        found = self._own[i].state.get(self._leaves[i], {})
        counted = self.rule.counts != "number" or found.get("step", 0) == self.taken
        return counted and all(
            found.get(name) is tensors[i] or (not self.taken and not found)
            for name, tensors in self.state.items()
        )

    def _has(self, name: str) -> bool:
        return name != "momentum_buffer" or bool(self.options["momentum"])

    def _state_of(self, name: str) -> list[Tensor]:
        found = [
            own.state.get(x, {}).get(name) for x, own in zip(self._leaves, self._own, strict=True)
        ]
        return [
            torch.zeros_like(x) if old is None else old
            for x, old in zip(self._leaves, found, strict=True)
        ]


def register(optimizer: PyroOptim, leaves: Sequence[Tensor]) -> None:
    """Make what an optimizer keeps of each parameter, as its first step on it would: by its own
    options, and with the state that waits for it since `set_state` or `load`."""
    for leaf in leaves:
        if leaf not in optimizer.optim_objs:
            optimizer.optim_objs[leaf] = held = optimizer._get_optim(leaf)
            optimizer.grad_clip[leaf] = optimizer._get_grad_clip(leaf)
            name = pyro.get_param_store().param_name(leaf)
            waiting = optimizer._state_waiting_to_be_consumed.pop(name, None)
            if waiting is not None:
                load_state(held, waiting)


def state_of(held: Any) -> dict[str, Any]:
    """The state of what a `PyroOptim` holds for a parameter, an optimizer or a schedule."""
    own = _optimizer(held)
    if own is held:
        return own.state_dict()
    return {"scheduler": held.state_dict(), "optimizer": own.state_dict()}


def load_state(held: Any, state: Mapping[str, Any]) -> None:
    """Give it such a state."""
    own = _optimizer(held)
    if own is not held:
        held.load_state_dict(state["scheduler"])
    own.load_state_dict(state if own is held else state["optimizer"])


def move_schedules(optimizer: PyroOptim, loss: float) -> None:
    """Let learning rate schedules move on by a step."""
    if isinstance(optimizer, PyroLRScheduler):
        by_loss = optimizer.pt_scheduler_constructor is ReduceLROnPlateau
        optimizer.step(loss) if by_loss else optimizer.step()


def update_of(optimizer: PyroOptim, leaves: Sequence[Tensor]) -> Update | str:
    """A Pyro optimizer as an update rule, or the reason there is none.

    What the optimizer has learnt about the parameters in earlier steps is taken over, and
    `write_back` gives it what it has learnt since.

    Args:
        optimizer: as `pyro.infer.SVI` takes it: Adam, AdamW, SGD or ClippedAdam of `pyro.optim`,
            also under a learning rate schedule of `pyro.optim`, with equal options for all
            parameters.
        leaves: the unconstrained parameters.
    """
    if any(leaf.dtype != leaves[0].dtype or leaf.device != leaves[0].device for leaf in leaves):
        return "parameters have more than one type or device"
    if (
        type(optimizer).__call__ not in _CALLS
        or getattr(type(optimizer), "step", None) not in _MOVES
    ):
        return f"{type(optimizer).__name__} takes steps of its own"
    register(optimizer, leaves)
    if any(optimizer.grad_clip.get(leaf) for leaf in leaves):
        return "it clips gradients parameter by parameter"
    held = [optimizer.optim_objs[leaf] for leaf in leaves]
    own = [_optimizer(one) for one in held]
    kind, group = type(own[0]), own[0].param_groups[0]
    rule = _RULES.get(kind)
    if rule is None:
        return f"{kind.__name__} has no formula here (Adam, AdamW, SGD and ClippedAdam have)"
    if any(type(one) is not kind for one in own) or any(
        not _same_options(one.param_groups[0], group) for one in own
    ):
        return "its options differ from parameter to parameter"
    for name in rule.unsupported:
        if group.get(name):
            return f"{kind.__name__} with {name}={group[name]} has no formula here"
    if isinstance(held[0], ReduceLROnPlateau):
        return "its learning rate depends on the losses"
    if getattr(held[0], "cycle_momentum", False):
        return f"{type(held[0]).__name__} moves more than the learning rate"
    if any(isinstance(one.param_groups[0]["lr"], Tensor) for one in own):
        return "its learning rate is a tensor"
    if any(one.param_groups[0]["lr"] != group["lr"] for one in own) or not _same_schedules(held):
        return "its learning rate differs from parameter to parameter"
    if len({_steps(o.state.get(leaf)) for o, leaf in zip(own, leaves, strict=True)}) != 1:
        return "it has taken more steps on some parameters than on others"
    return Update(rule, leaves, held)


_CALLS = (PyroOptim.__call__, PyroLRScheduler.__call__)
_MOVES = (None, PyroLRScheduler.step)


def _optimizer(held: Any) -> Any:
    return getattr(held, "optimizer", held)


def _steps(state: Mapping[str, Any] | None) -> int:
    """SGD does not count, and only its first step differs from the others."""
    return int(state.get("step", 1)) if state else 0


def _same_options(group: Mapping[str, Any], options: Options) -> bool:
    return all(group.get(name) == value for name, value in options.items() if name not in _VARIES)


_VARIES = ("params", "lr", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")


def _same_schedules(held: Sequence[Any]) -> bool:
    return len({getattr(one, "last_epoch", None) for one in held}) == 1 and all(
        type(one) is type(held[0])
        and getattr(one, "base_lrs", None) == getattr(held[0], "base_lrs", None)
        for one in held
    )


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
            warnings.simplefilter("ignore")  # PyTorch wants to see the optimizer step
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
    torch.optim.Adam: Rule(
        _MOMENTS,
        _adam_scalars,
        _adam,
        "tensor",
        ("maximize", "amsgrad", "decoupled_weight_decay"),
    ),
    torch.optim.AdamW: Rule(_MOMENTS, _adam_scalars, _adamw, "tensor"),
    ClippedAdam: Rule(_MOMENTS, _adam_scalars, _clipped_adam, "number"),
    torch.optim.SGD: Rule(("momentum_buffer",), _sgd_scalars, _sgd),
}
