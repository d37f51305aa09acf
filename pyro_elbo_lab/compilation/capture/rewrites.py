"""Functions of PyTorch that read numbers or write unseen, as operators that a graph can hold."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import EllipsisType
from typing import Any
from unittest.mock import patch

import torch
from pyro.infer.util import Dice
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pyro_elbo_lab.compilation.capture.guard import CaptureError, line_now

__all__ = ["rewritten"]

_BATCH_NORM: Any = nn.BatchNorm1d.__base__
_SELECTS = Tensor.select, torch.select
_DICE = Dice.compute_expectation.__code__


@contextmanager
def rewritten() -> Iterator[None]:
    """Within it integers that were drawn may be an index, BatchNorm writes its statistics by
    operators, and Pyro's `Dice` multiplies by zero what it would leave out.

    Raises:
        CaptureError: an element was taken out by an index that was drawn, and written to.
    """
    rewrites = _Rewrites()
    with patch.object(_BATCH_NORM, "forward", _forward), rewrites:
        yield
        rewrites.refuse_lost_writes()


class _Rewrites(TorchFunctionMode):
    """
    Attributes:
        copies: what was selected by an index that was drawn: a copy where PyTorch gives a view.
            With it the tensor and the index, how often it has been written to, and by which line.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[list[Any]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.batch_norm:
            return _batch_norm(*args, **kwargs)
        if func in (Tensor.all, Tensor.masked_select) and sys._getframe(1).f_code is _DICE:
            return False if func is Tensor.all else torch.where(args[1], args[0], 0)
        if func is Tensor.__getitem__ and _places(*args):
            return self._copied(_select(*args), *args)
        if func is Tensor.__setitem__ and _places(*args[:2]):
            self._settle(*args)
            return _write(*args)
        if func in _SELECTS and len(args) == 3 and _is_drawn(args[2]):
            return self._copied(_pick(*args), *args)
        return func(*args, **kwargs)

    def _copied(self, found: Tensor, tensor: Tensor, *index: Any) -> Tensor:
        self.copies.append([found, tensor, index[-1], found._version, line_now()])
        return found

    def _settle(self, tensor: Tensor, index: Any, value: Any) -> None:
        """`x[i] += 1` writes to what was selected and then gives it to x."""
        for copy in self.copies:
            if copy[0] is value and copy[1] is tensor and copy[2] is index:
                copy[3] = value._version

    def refuse_lost_writes(self) -> None:
        for found, _, _, version, line in self.copies:
            if found._version != version:
                raise CaptureError(
                    f"it writes to an element that a drawn index selects ({line}). Use "
                    "torch.where or index_put"
                )


def _is_drawn(entry: Any) -> bool:
    if not isinstance(entry, Tensor) or entry.dim() or entry.is_floating_point():
        return False
    return entry.dtype not in (torch.bool, torch.uint8) and not entry.is_complex()


def _places(tensor: Tensor, index: Any) -> list[tuple[int, int]]:
    """Which entries of an index are 0-dimensional integers, and the dimensions that they select
    from; none if there is something else that is not understood."""
    entries = index if isinstance(index, tuple) else (index,)
    if not any(map(_is_drawn, entries)):
        return []
    widths = [_width(entry) for entry in entries]
    if any(width is None for width in widths):
        return []
    taken = sum(width for width in widths if width is not None)
    places, dim = [], 0
    for i, (entry, width) in enumerate(zip(entries, widths, strict=True)):
        if entry is Ellipsis:
            dim += tensor.dim() - taken
        elif _is_drawn(entry):
            places.append((i, dim))
        dim += width or 0
    return places


def _width(entry: Any) -> int | None:
    """How many dimensions an entry of an index takes."""
    if entry is None or isinstance(entry, bool | EllipsisType):
        return 0
    if isinstance(entry, Tensor):
        return entry.dim() if entry.dtype in (torch.bool, torch.uint8) else 1
    numbers = isinstance(entry, list) and all(type(x) is int for x in entry)
    return 1 if numbers or isinstance(entry, int | slice) else None


def _select(tensor: Tensor, index: Any) -> Tensor:
    entries = index if isinstance(index, tuple) else (index,)
    places = _places(tensor, index)
    for i, dim in reversed(places):
        tensor = _pick(tensor, dim, entries[i])
    others = tuple(x for i, x in enumerate(entries) if i not in dict(places))
    return tensor[others] if others else tensor


def _write(tensor: Tensor, index: Any, value: Any) -> None:
    """One integer after the other: take out what it selects, change that, and put it back."""
    entries = index if isinstance(index, tuple) else (index,)
    i, dim = _places(tensor, index)[-1]
    part = _pick(tensor, dim, entries[i])
    others = (*entries[:i], *entries[i + 1 :])
    if _places(part, others):
        _write(part, others, value)
    else:
        part[others if others else ...] = value
    tensor.index_copy_(dim, _position(tensor, dim, entries[i]), part.unsqueeze(dim))


def _pick(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    return tensor.index_select(dim, _position(tensor, dim, index)).squeeze(dim)


def _position(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    index = index.to(tensor.device, torch.int64).reshape(1)
    return torch.where(index < 0, index + tensor.shape[dim], index)


def _forward(layer: Any, x: Tensor) -> Tensor:
    """A BatchNorm layer that averages all batches divides by their number, as a Python number."""
    if layer.momentum is not None or not (layer.training and layer.track_running_stats):
        return _FORWARD(layer, x)
    layer._check_input_dim(x)
    layer.num_batches_tracked.add_(1)
    share = 1 / layer.num_batches_tracked
    statistics = layer.running_mean, layer.running_var
    return _batch_norm(x, *statistics, layer.weight, layer.bias, True, share, layer.eps)


_FORWARD: Any = _BATCH_NORM.forward


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """PyTorch's batch norm, which writes its running statistics where a graph can see it."""
    if not training or running_mean is None or running_var is None:
        return functional.batch_norm(
            x, running_mean, running_var, weight, bias, training, momentum, eps
        )
    with torch.no_grad():
        var, mean = torch.var_mean(x.detach(), [0, *range(2, x.dim())])
        for running, found in ((running_mean, mean), (running_var, var)):
            running.copy_((1 - momentum) * running + momentum * found)
    return functional.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
