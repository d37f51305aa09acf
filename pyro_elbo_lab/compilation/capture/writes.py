"""Tensors that outlive a run of a program and that the run writes to, and how to undo that.

What every run writes, the running mean of a BatchNorm layer, is state: whoever runs the program to
learn about it puts it back. What only the first run writes is an initialization, which stays.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_elbo_lab.compilation.capture.guard import (
    CaptureError,
    line_now,
    made_by,
    refuse_generators,
    storage_of,
    tensors_in,
    written_by,
)

__all__ = ["State", "first_run", "put_back"]


class _Write(NamedTuple):
    """A write, and what there was before."""

    operator: Any
    storage: int
    tensor: Tensor
    before: Tensor
    line: str


class State(NamedTuple):
    """What every run writes to.

    Attributes:
        tensor: all of the memory, flat.
        line: of the program that writes first.
    """

    tensor: Tensor
    line: str


class _Writes(TorchDispatchMode):
    """Writes down what a program writes to tensors that it has not made itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[_Write] = []
        self._own: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        refuse_generators(func, (*args, *kwargs.values()))
        for x in written_by(func, args, kwargs):
            if storage_of(x) not in self._own:
                plain = x.detach()
                self.found.append(_Write(func, storage_of(x), plain, plain.clone(), line_now()))
        result = func(*args, **kwargs)
        given = {storage_of(x) for x in tensors_in((*args, *kwargs.values()))}
        self._own |= made_by(func, given, result)
        return result

    def of(self, storage: int) -> list[_Write]:
        return [write for write in self.found if write.storage == storage]

    def undo(self, storage: int, how_many: int) -> None:
        """Undo the last writes to a storage."""
        writes = self.of(storage)
        for write in reversed(writes[len(writes) - how_many :]):
            _give(write.tensor, write.before)


def first_run(run: Callable[[], Any]) -> tuple[Any, list[State]]:
    """Run a program, and once more if it writes to tensors that outlive the run.

    Afterwards all is as if the program had been set up, but not yet run: what the second run writes
    too is as before both.

    Returns:
        The result of the first run, and what every run writes to.

    Raises:
        CaptureError: the second run writes other things than the first.
    """
    first = _Writes()
    try:
        with first:
            result = run()
    except CaptureError:
        for storage in {write.storage for write in first.found}:
            first.undo(storage, len(first.of(storage)))
        raise
    if not first.found:
        return result, []
    again = _Writes()
    with again:
        run()
    storages = {write.storage for write in again.found}
    counts = {storage: len(again.of(storage)) for storage in storages}
    for storage, count in counts.items():
        again.undo(storage, count)
    repeated = {s: min(count, len(first.of(s))) for s, count in counts.items()}
    ends = {s: first.of(s)[len(first.of(s)) - n :] for s, n in repeated.items()}
    for storage, count in repeated.items():
        first.undo(storage, count)
    for storage in storages:
        same = [w.operator for w in ends[storage]] == [w.operator for w in again.of(storage)]
        if not same:
            raise CaptureError(
                "it writes to a tensor that outlives the call, and not the same at every run "
                f"({again.of(storage)[0].line})"
            )
    writes = [again.of(storage)[0] for storage in storages]
    return result, [State(_whole(write.tensor), write.line) for write in writes]


@contextmanager
def put_back(tensors: Sequence[Tensor]) -> Iterator[None]:
    """What happens to these tensors in the block is undone after it."""
    saved = [x.clone() for x in tensors]
    try:
        yield
    finally:
        for x, before in zip(tensors, saved, strict=True):
            _give(x, before)


def _give(tensor: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(value)


def _whole(tensor: Tensor) -> Tensor:
    """All of the memory that a tensor is a view of."""
    size = tensor.untyped_storage().nbytes() // tensor.itemsize
    return tensor.detach().as_strided((size,), (1,), 0)
