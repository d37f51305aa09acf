"""The arguments of every step: the same ones, or batch after batch."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["Batches", "UsedUpError", "as_arguments", "usable"]


class UsedUpError(Exception):
    """There are no more batches, as an iterator can be gone through only once."""


class Batches:
    """Positional arguments, one tuple a step.

    Args:
        args: those of every step.
        batches: what to take them from instead: tensors or tuples. It is gone through again and
            again.

    Attributes:
        first: those of the first step.
        varying: whether they differ from step to step.

    Raises:
        TypeError: `batches` cannot be gone through, or yields no batches.
        ValueError: `batches` are empty, or there are `args` too.

    Example:
        >>> batches = Batches((), ["a", "b"])
        >>> [next(batches) for _ in range(3)]
        [('a',), ('b',), ('a',)]
    """

    def __init__(self, args: tuple, batches: Iterable[Any] | None) -> None:
        if batches is not None:
            _check(args, batches)
        self._batches = batches
        self._iterator: Iterator[Any] = iter(batches if batches is not None else ())
        self.varying = batches is not None
        self._waiting = True
        try:
            self.first = self._next = self._one() if self.varying else usable(args)
        except UsedUpError:
            raise ValueError(
                "batches is empty. (A generator that was gone through before is empty.)"
            ) from None

    def __iter__(self) -> Iterator[tuple]:
        return self

    def __next__(self) -> tuple:
        if self.varying and not self._waiting:
            self._next = self._one()
        self._waiting = False
        return self._next

    def _one(self) -> tuple:
        batch = next(self._iterator, _END)
        if batch is _END:
            self._iterator = iter(self._batches or ())
            batch = next(self._iterator, _END)
        if batch is _END:
            raise UsedUpError
        return usable(as_arguments(batch))


_END = object()


def as_arguments(batch: Any) -> tuple:
    """The positional arguments that a batch stands for."""
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def usable(arguments: Any) -> Any:
    """Arguments without tensors of `torch.inference_mode`, which cannot be trained on."""
    if not any(isinstance(x, Tensor) and x.is_inference() for x in tree_leaves(arguments)):
        return arguments
    return tree_map(
        lambda x: x.clone() if isinstance(x, Tensor) and x.is_inference() else x, arguments
    )


def _check(args: tuple, batches: Any) -> None:
    if args:
        raise ValueError("Positional arguments come from args or from batches, not from both.")
    if isinstance(batches, str | bytes | Mapping) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be a list, a DataLoader or another iterable of tensors or tuples, got a "
            f"{type(batches).__name__}."
        )
