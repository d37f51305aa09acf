"""Writes of a program to tensors that were there before it ran: buffers, data, what a closure holds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Writes", "storage", "tensors_kept"]

aten = torch.ops.aten

_UNDECLARED = {  # positions of the running statistics, which these write to in training
    aten.native_batch_norm.default: (3, 4),
    aten.cudnn_batch_norm.default: (3, 4),
    aten.miopen_batch_norm.default: (3, 4),
}
_TRAINING = 5
_FRESH = (aten.lift_fresh.default, aten.lift_fresh_copy.default)  # torch.tensor(...)


class Writes(TorchDispatchMode):
    """Within it, `before` is called with the operator and the tensor before each such write."""

    def __init__(self, before: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self._before = before
        self._own: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        for tensor in _written(func, args, kwargs or {}):
            if storage(tensor) not in self._own:
                self._before(func, tensor)
        result = func(*args, **(kwargs or {}))
        given = {storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = {storage(x) for x in tree_leaves(result) if isinstance(x, Tensor)}
        self._own |= made if func in _FRESH else made - given
        return result


@contextmanager
def tensors_kept() -> Iterator[None]:
    """Gives tensors that were there before the values back that they had.

    Example:
        >>> count = torch.zeros(2)
        >>> with tensors_kept():
        ...     count[0] += 1
        >>> count
        tensor([0., 0.])
    """
    saved: list[tuple[Tensor, Tensor]] = []

    def save(func: Any, tensor: Tensor) -> None:
        saved.append((tensor.detach(), tensor.detach().clone()))

    try:
        with Writes(save):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in reversed(saved):
                tensor.copy_(value)


def _written(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    if func in _UNDECLARED:
        found = [args[i] for i in _UNDECLARED[func]] if args[_TRAINING] else []
        return [x for x in found if x is not None]
    schema = func._schema
    if not schema.is_mutable:
        return []
    arguments = [
        args[i] if i < len(args) else kwargs.get(argument.name)
        for i, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [x for x in tree_leaves(arguments) if isinstance(x, Tensor)]


def storage(tensor: Tensor) -> int:
    """What tensors that share memory have in common."""
    return tensor.untypedstorage()._cdata
