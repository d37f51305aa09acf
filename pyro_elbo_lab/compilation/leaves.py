"""Parameters as the tensors that are trained: where they are kept, and hooks on their gradients."""

import functools
import inspect
import types
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_elbo_lab.compilation.capture.guard import CaptureError
from pyro_elbo_lab.compilation.watch.environment import Place

__all__ = [
    "accumulate",
    "announced",
    "hooked",
    "places_of",
    "refuse_hooks",
    "without_hooks",
]


def announced(leaf: Tensor) -> Tensor:
    """The value of a parameter site that shows where a module's own parameter is kept."""
    value: Any = leaf.detach()
    value.unconstrained = weakref.ref(leaf)
    return value


def places_of(
    names: Sequence[str], leaves: Sequence[Tensor], *programs: Any
) -> tuple[Place | None, ...]:
    """Where parameters are that are local to a module, as under Pyro's `module_local_params`.

    Args:
        names: of the parameter sites.
        leaves: their unconstrained values.
        programs: model and guide.

    Returns:
        None for parameters in the param store.

    Raises:
        CaptureError: a parameter is found neither there nor in a module that a program holds.
    """
    store = pyro.get_param_store()._params
    places: list[Place | None] = []
    local: dict[int, Place] = {}
    for name, leaf in zip(names, leaves, strict=True):
        if store.get(name) is leaf:
            places.append(None)
            continue
        if not local:
            local = {id(x): place for program in programs for x, place in _local(program)}
        if id(leaf) not in local:
            raise CaptureError(
                f"parameter '{name}' is neither in the param store nor in a module that model or "
                "guide holds"
            )
        places.append(local[id(leaf)])
    return tuple(places)


def _local(program: Any) -> Iterator[tuple[Tensor, Place]]:
    for module in _modules_of(program, set()):
        own = vars(module)["_parameters"]
        for key, leaf in own.items():
            yield leaf, Place(own, key, key)


def _modules_of(value: Any, seen: set[int]) -> Iterator[nn.Module]:
    """The modules that a program is, is a method of, or reads from its closure or globals."""
    if id(value) in seen or isinstance(value, type | types.ModuleType | Tensor):
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield from value.modules()
        return
    if isinstance(value, types.FunctionType):
        names = value.__code__.co_names
        parts = [value.__globals__[name] for name in names if name in value.__globals__]
        parts += [*inspect.getclosurevars(value).nonlocals.values(), *(value.__defaults__ or ())]
    elif isinstance(value, types.MethodType):
        parts = [value.__self__, value.__func__]
    elif isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif isinstance(value, dict):
        parts = list(value.values())
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    for part in parts:
        yield from _modules_of(part, seen)


def refuse_hooks(objective: ELBO, names: Sequence[str], leaves: Sequence[Tensor]) -> None:
    """Raise if a hook would be given the gradients of particles one by one."""
    one_by_one = objective.num_particles > 1 and not objective.vectorize_particles
    if not (one_by_one and type(objective).__module__.startswith("pyro.")):
        return
    for name, leaf in zip(names, leaves, strict=True):
        if hooked(leaf):
            raise CaptureError(
                f"parameter '{name}' has a hook on its gradient, and {type(objective).__name__} "
                "gives it the gradients of particles one by one"
            )


def hooked(leaf: Tensor) -> bool:
    """Whether something is to be done to the gradient, or after it."""
    return bool(leaf._backward_hooks or leaf._post_accumulate_grad_hooks)


@contextmanager
def without_hooks(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Hooks on gradients are off in the block."""
    kept = [(leaf, leaf._backward_hooks) for leaf in leaves if leaf._backward_hooks]
    for leaf, _ in kept:
        leaf._backward_hooks = None
    try:
        yield
    finally:
        for leaf, hooks in kept:
            leaf._backward_hooks = hooks


def accumulate(leaves: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Add gradients to the parameters' `.grad`, by way of their hooks.

    Args:
        leaves: parameters.
        gradients: one a parameter; may be overwritten later.
    """
    given = [_by_hooks(x, g) if hooked(x) else g for x, g in zip(leaves, gradients, strict=True)]
    sums: Any = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    if leaves:
        torch._foreach_add_(sums, given)
    for leaf, total in zip(leaves, sums, strict=True):
        if leaf.grad is None:
            leaf.grad = total
        if leaf._post_accumulate_grad_hooks:
            for hook in list(leaf._post_accumulate_grad_hooks.values()):
                hook(leaf)


def _by_hooks(leaf: Tensor, gradient: Tensor) -> Tensor:
    gradient = gradient.clone()
    for hook in list((leaf._backward_hooks or {}).values()):
        changed = hook(gradient)
        gradient = gradient if changed is None else changed
    return gradient
