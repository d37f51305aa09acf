"""Minibatches of tensors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def unchanged(batch: Tensor) -> Tensor:
    """The batch."""
    return batch


@dataclass(frozen=True)
class Batches:
    """Minibatches of an epoch, in a new order every time it is gone through.

    Attributes:
        tensors: with rows in common, (N, ...) each.
        size: of a batch; what is left over waits for the next epoch.
        transform: applied to each tensor of a batch, such as `torch.bernoulli`.
    """

    tensors: tuple[Tensor, ...]
    size: int
    transform: Callable[[Tensor], Tensor] = unchanged

    def __len__(self) -> int:
        return len(self.tensors[0]) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        first = self.tensors[0]
        order = torch.randperm(len(first), device=first.device)
        for rows in order[: len(self) * self.size].split(self.size):
            yield tuple(self.transform(tensor[rows]) for tensor in self.tensors)
