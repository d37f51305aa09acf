"""Cumulative sums and products of short vectors as ordinary reductions, for graphs to be compiled.

Inductor has no kernel for them on the CPU and calls PyTorch instead, in the middle of what would
have been one kernel. Stick-breaking (the simplex, correlation matrices) is full of them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["DECOMPOSITIONS"]

aten = torch.ops.aten

_LONGEST = 64  # n numbers cost n * n operations


def _cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    return _scan(x, dim, dtype, 0, lambda parts: parts.sum(-1))


def _cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    return _scan(x, dim, dtype, 1, lambda parts: parts.prod(-1))


def _scan(
    x: Tensor,
    dim: int,
    dtype: torch.dtype | None,
    neutral: int,
    reduce: Callable[[Tensor], Tensor],
) -> Any:
    if not x.dim() or x.shape[dim] > _LONGEST or x.is_complex() or dtype is not None:
        return NotImplemented
    n = x.shape[dim]
    if not x.is_floating_point():
        x = x.to(torch.int64)
    earlier = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
    last = x.movedim(dim, -1).unsqueeze(-2)  # (..., 1, n)
    return reduce(torch.where(earlier, last, neutral)).movedim(-1, dim)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.cumsum.default: _cumsum,
    aten.cumprod.default: _cumprod,
}
